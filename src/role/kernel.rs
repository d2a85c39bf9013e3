//! What the kernel tells as it happens: that an address, a route or an interface came or went, and that the clock was set, as it
//! is when the machine wakes. Only Linux does, and what it says is not looked into: whoever hears it has to look.

use std::io;
use std::os::fd::OwnedFd;

use tokio::net::unix::pipe::Receiver;

/// Notices that are thrown away at a time.
const AT_A_TIME: usize = 64;

/// What is heard of it; tokio reads all that can be read as it reads a pipe. Where something cannot be heard of, as in a sandbox, nothing comes of that.
#[derive(Debug)]
pub struct Kernel {
    network: Option<Receiver>,
    clock: Option<Receiver>,
}

impl Kernel {
    /// Hears from here on.
    pub fn heard() -> Kernel {
        let heard = |source: io::Result<OwnedFd>, of| {
            let source = source.and_then(Receiver::from_owned_fd_unchecked);
            source.inspect_err(|error| tracing::debug!(%error, of, "the kernel tells nothing of it")).ok()
        };
        Kernel { network: heard(sources::network(), "the network"), clock: heard(sources::clock(), "the clock") }
    }

    /// Ready when something happened.
    pub async fn tells(&self) {
        tokio::select! {
            () = read(self.network.as_ref()) => {}
            () = read(self.clock.as_ref()) => {}
        }
    }
}

/// Ready when there was something to read. It is thrown away: notices may be lost, and their order says nothing.
async fn read(source: Option<&Receiver>) {
    let Some(source) = source else { return std::future::pending().await };
    let Ok(()) = source.readable().await else { return std::future::pending().await };
    let mut notice = [0; 4096];
    for _ in 0..AT_A_TIME {
        // Other errors are notices, too: of a clock that was set, or of those that are lost.
        if source.try_read(&mut notice).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            return;
        }
    }
}

#[cfg(target_os = "linux")]
mod sources {
    use std::io;
    use std::os::fd::{AsRawFd, OwnedFd};

    use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
    };

    /// Groups of notices (rtnetlink(7)): links, then addresses and routes of IPv4 and of IPv6.
    const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

    pub fn network() -> io::Result<OwnedFd> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        Ok(socket)
    }

    /// A timer that never ends, and is cancelled when the clock is set.
    pub fn clock() -> io::Result<OwnedFd> {
        let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let (never, once) = (Timespec { tv_sec: i64::MAX, tv_nsec: 0 }, Timespec { tv_sec: 0, tv_nsec: 0 });
        let timer_spec = Itimerspec { it_interval: once, it_value: never };
        timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &timer_spec)?;
        Ok(timer)
    }
}

#[cfg(not(target_os = "linux"))]
mod sources {
    use std::io;
    use std::os::fd::OwnedFd;

    pub fn network() -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn clock() -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
