//! The link's own thread: listens, dials the target for each connection, and moves bytes when the wire says so.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::frames::{Frames, Unit, shortened};
use super::wire::{Clock, Wire};
use super::{Counts, Direction, Flow, Harm, Recorded};

/// Most bytes that are moved at a time.
const CHUNK: usize = 64 * 1024;

/// Fewest, however slow the wire is: a packet.
const PACKET: usize = 1500;

/// How long one chunk may keep the wire from the other connections.
const TURN: Duration = Duration::from_millis(2);

/// Bytes of each socket's buffers in the kernel, which queue too: small beside the queue of a wire that matters.
const SOCKET_BUFFER: usize = 256 * 1024;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Bytes of each direction of a connection that are recorded.
const RECORDED: usize = 1 << 20;

/// Connections that are recorded; the first ones.
const RECORDINGS: usize = 64;

/// What the link is told.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub wire: Wire,
    pub flow: [Flow; 2],
    /// Connections are broken when it changes.
    pub epoch: u64,
    pub accepts: bool,
    /// The connections before this number are held back, and later ones overtake them.
    pub overtaken: u64,
    /// The connections before this number are silent for good.
    pub forgotten: u64,
    /// Harm comes to whole messages of a WebSocket.
    pub messages: bool,
    pub records: bool,
}

impl Settings {
    /// Whether connection `number` waits while others pass.
    fn overtakes(&self, number: u64) -> bool {
        number < self.overtaken
    }
}

/// What the handle and the thread share.
#[derive(Debug)]
pub struct Shared {
    pub settings: watch::Sender<Settings>,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    clocks: [Clock; 2],
    harms: [Option<(u64, Harm)>; 2],
    delivered: [u64; 2],
    accepted: u64,
    late: u64,
    recorded: Vec<Recorded>,
    /// What the next connections hear in place of the target.
    answers: Vec<Bytes>,
    /// Open connections by the epoch that they are of.
    open: BTreeMap<u64, usize>,
    /// The ports of clients whose open connections are silent for good.
    silent: BTreeSet<u16>,
}

impl Shared {
    pub fn new(wire: Wire) -> Shared {
        let settings = Settings {
            wire,
            flow: [Flow::Open; 2],
            epoch: 0,
            accepts: true,
            overtaken: 0,
            forgotten: 0,
            messages: false,
            records: false,
        };
        Shared { settings: watch::Sender::new(settings), book: Mutex::default() }
    }

    pub fn counts(&self) -> Counts {
        let book = self.book();
        let [up, down] = book.delivered;
        Counts { accepted: book.accepted, open: book.open.values().sum(), up, down, late: book.late }
    }

    pub fn open_before(&self, epoch: u64) -> usize {
        self.book().open.range(..epoch).map(|(_, count)| count).sum()
    }

    pub fn harm_after(&self, direction: Direction, bytes: u64, harm: Harm) {
        self.book().harms[direction as usize] = Some((bytes, harm));
    }

    pub fn harm_is_due(&self) -> bool {
        self.book().harms.iter().any(Option::is_some)
    }

    pub fn forget_harms(&self) {
        self.book().harms = [None; 2];
    }

    pub fn forget_ports(&self, ports: &[u16]) {
        self.book().silent.extend(ports);
    }

    pub fn recorded(&self) -> Vec<Recorded> {
        self.book().recorded.clone()
    }

    pub fn answer_next(&self, bytes: Bytes) {
        self.book().answers.push(bytes);
    }

    fn take_answer(&self) -> Option<Bytes> {
        self.book().answers.pop()
    }

    /// The harm that comes to a unit, with the number of its bytes before it.
    fn harm(&self, direction: Direction, unit: &Unit) -> Option<(usize, Harm)> {
        let messages = self.settings.borrow().messages;
        let mut book = self.book();
        let due = &mut book.harms[direction as usize];
        let (left, harm) = (*due)?;
        // What is no message can be cut, but not doubled or shortened as one.
        if messages && !unit.is_message && harm != Harm::Cut {
            return None;
        }
        if left <= unit.bytes.len() as u64 {
            *due = None;
            return Some((left as usize, harm));
        }
        *due = Some((left - unit.bytes.len() as u64, harm));
        None
    }

    /// What is to be delivered in place of a unit, and whether the connection ends after it.
    fn harmed(&self, direction: Direction, unit: Unit) -> (Bytes, bool) {
        match self.harm(direction, &unit) {
            None => (unit.bytes, false),
            Some((at, Harm::Cut)) => (unit.bytes.slice(..at), true),
            Some((_, Harm::Double)) => ([&unit.bytes[..], &unit.bytes].concat().into(), false),
            Some((_, Harm::Shorten)) if unit.is_message => (shortened(&unit.bytes).into(), false),
            Some((_, Harm::Shorten)) => (unit.bytes.slice(..unit.bytes.len() / 2), false),
            Some((_, Harm::Alter)) => {
                let mut bytes = unit.bytes.to_vec();
                bytes.iter_mut().last().into_iter().for_each(|last| *last ^= 1);
                (bytes.into(), false)
            }
        }
    }

    fn record(&self, number: u64, direction: Direction, bytes: &[u8]) {
        let mut book = self.book();
        let at = match book.recorded.iter().position(|recorded| recorded.number == number) {
            Some(at) => at,
            None if book.recorded.len() < RECORDINGS => {
                book.recorded.push(Recorded { number, ..Recorded::default() });
                book.recorded.len() - 1
            }
            None => return,
        };
        let recorded = &mut book.recorded[at];
        let kept = if direction == Direction::Up { &mut recorded.up } else { &mut recorded.down };
        kept.extend_from_slice(&bytes[..bytes.len().min(RECORDED - kept.len())]);
    }

    fn flow(&self, direction: Direction) -> Flow {
        self.settings.borrow().flow[direction as usize]
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A port that is ours whether or not somebody listens on it.
#[derive(Debug)]
pub struct Port {
    held: Socket,
    addr: SocketAddr,
}

impl Port {
    /// One of `bind`, an address of the network namespace that the thread is in.
    pub fn reserve(bind: IpAddr) -> io::Result<Port> {
        let held = bound((bind, 0).into())?;
        let addr = held.local_addr()?.as_socket().ok_or(ErrorKind::AddrNotAvailable)?;
        Ok(Port { held, addr })
    }

    pub fn number(&self) -> u16 {
        self.addr.port()
    }

    fn listen(&self) -> io::Result<TcpListener> {
        let socket = bound(self.held.local_addr()?.as_socket().ok_or(ErrorKind::AddrNotAvailable)?)?;
        // Before it listens: the window of a connection is settled while it is made.
        socket.set_recv_buffer_size(SOCKET_BUFFER)?;
        socket.set_send_buffer_size(SOCKET_BUFFER)?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket.into())
    }
}

fn bound(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

/// Listens and relays until `stop`.
pub async fn run(port: Port, target: u16, shared: Arc<Shared>, listens: watch::Sender<bool>, stop: CancellationToken) {
    let mut settings = shared.settings.subscribe();
    let mut connections = JoinSet::new();
    while !stop.is_cancelled() {
        let accepts = settings.borrow_and_update().accepts;
        let listener = accepts.then(|| port.listen().expect("the port is ours"));
        listens.send_replace(accepts);
        loop {
            tokio::select! {
                Some(accepted) = async { Some(listener.as_ref()?.accept().await) } => {
                    // A client that left before it was accepted is nothing.
                    if let Ok((client, _)) = accepted {
                        connections.spawn(attend(client, target, shared.clone()));
                    }
                }
                _ = settings.changed() => if settings.borrow_and_update().accepts != accepts { break },
                Some(_) = connections.join_next() => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

/// A connection in the book for as long as this is.
struct Entry {
    shared: Arc<Shared>,
    epoch: u64,
    /// Counts all connections of the link, from 0.
    number: u64,
    /// Of the client.
    port: u16,
}

impl Entry {
    fn new(shared: Arc<Shared>, port: u16) -> Entry {
        let epoch = shared.settings.borrow().epoch;
        let mut book = shared.book();
        let number = book.accepted;
        book.accepted += 1;
        *book.open.entry(epoch).or_default() += 1;
        drop(book);
        Entry { shared, epoch, number, port }
    }

    /// Whether it says nothing more, for good.
    fn is_forgotten(&self) -> bool {
        self.number < self.shared.settings.borrow().forgotten || self.shared.book().silent.contains(&self.port)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut book = self.shared.book();
        let open = book.open.entry(self.epoch).or_default();
        *open -= 1;
        if *open == 0 {
            book.open.remove(&self.epoch);
        }
        book.silent.remove(&self.port);
    }
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// In good order, or by a cut that was asked for.
    Closed,
    /// With a reset, which is passed on.
    Reset,
}

/// One connection, from its beginning to its end.
async fn attend(client: TcpStream, target: u16, shared: Arc<Shared>) {
    let entry = Entry::new(shared.clone(), client.peer_addr().map_or(0, |peer| peer.port()));
    let mut settings = shared.settings.subscribe();
    let broken = settings.wait_for(|settings| settings.epoch != entry.epoch);
    let mut server = None;
    let end = tokio::select! {
        end = carry(&client, target, &mut server, &entry) => end,
        _ = broken => End::Reset,
    };
    if end == End::Reset {
        for socket in [Some(&client), server.as_ref()].into_iter().flatten() {
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }
    // The sockets before the entry: who waits for the count to fall waits for them.
    drop((client, server));
    drop(entry);
}

async fn carry(client: &TcpStream, target: u16, server: &mut Option<TcpStream>, entry: &Entry) -> End {
    let shared = &entry.shared;
    let mut settings = shared.settings.subscribe();
    // Its first packet, or the answer to it, does not arrive; the client's kernel sends it again until it does.
    let _ = settings.wait_for(|settings| settings.flow == [Flow::Open; 2]).await;
    if let Some(answer) = shared.take_answer() {
        return impersonate(client, &answer).await;
    }
    let Ok(dialled) = dial(target).await else { return End::Reset };
    let server = &*server.insert(dialled);
    if client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).is_err() {
        return End::Reset;
    }
    let up = pump(client, server, Direction::Up, entry);
    let down = pump(server, client, Direction::Down, entry);
    tokio::pin!(up, down);
    // Ends when both directions have, or when one takes the other along.
    let mut ended = [false; 2];
    while ended != [true; 2] {
        let end = tokio::select! {
            end = &mut up, if !ended[0] => { ended[0] = true; end }
            end = &mut down, if !ended[1] => { ended[1] = true; end }
        };
        if let Some(end) = end {
            return end;
        }
    }
    End::Closed
}

/// Says what somebody else said once, and listens until the other side has had enough.
async fn impersonate(client: &TcpStream, answer: &[u8]) -> End {
    let mut heard = vec![0; CHUNK];
    // As a server it waits to be asked.
    if client.readable().await.is_err() || write(client, answer).await.is_err() {
        return End::Reset;
    }
    loop {
        match client.readable().await.and_then(|()| client.try_read(&mut heard)) {
            Ok(0) => return End::Closed,
            Err(error) if error.kind() != ErrorKind::WouldBlock => return End::Reset,
            Ok(_) | Err(_) => {}
        }
    }
}

async fn dial(target: u16) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(SOCKET_BUFFER as u32)?;
    socket.set_send_buffer_size(SOCKET_BUFFER as u32)?;
    // A link that is reset while it dials resets what it has dialled.
    SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    let dialled = socket.connect((Ipv4Addr::LOCALHOST, target).into()).await?;
    SockRef::from(&dialled).set_linger(None)?;
    Ok(dialled)
}

/// What is under way, and when it arrives.
struct Parcel {
    due: Instant,
    content: Content,
}

enum Content {
    Bytes(Bytes),
    Fin,
    Reset,
}

/// Bytes of one direction of a connection that are under way.
#[derive(Default)]
struct Load {
    bytes: AtomicUsize,
    fell: Notify,
}

impl Load {
    fn taken(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Relaxed);
        self.fell.notify_one();
    }
}

/// One direction of one connection. `None` when it ended for itself alone.
async fn pump(from: &TcpStream, to: &TcpStream, direction: Direction, entry: &Entry) -> Option<End> {
    let (sender, parcels) = mpsc::unbounded_channel();
    let load = Load::default();
    let sending = send(from, direction, &entry.shared, &load, sender);
    let delivering = deliver(to, direction, entry, &load, parcels);
    tokio::pin!(delivering);
    tokio::select! {
        end = &mut delivering => end,
        () = sending => delivering.await,
    }
}

/// Reads, as far as there is room, and puts it on the wire.
async fn send(
    from: &TcpStream,
    direction: Direction,
    shared: &Shared,
    load: &Load,
    parcels: mpsc::UnboundedSender<Parcel>,
) {
    let mut scratch = vec![0; CHUNK];
    let mut last = Instant::now();
    loop {
        let ready = from.readable().await;
        let wire = shared.settings.borrow().wire;
        if load.bytes.load(Relaxed) >= wire.in_flight() {
            load.fell.notified().await;
            continue;
        }
        let now = Instant::now();
        let room_at = shared.book().clocks[direction as usize].room_at(now, &wire);
        if room_at > now {
            sleep_until(room_at.into()).await;
            continue;
        }
        // Nothing is awaited between the look at the room and its use: the queue's bound holds for all connections together.
        let most = wire.sends(TURN).clamp(PACKET, CHUNK);
        let content = match ready.and_then(|()| from.try_read(&mut scratch[..most])) {
            Ok(0) => Content::Fin,
            Ok(n) => Content::Bytes(Bytes::copy_from_slice(&scratch[..n])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(_) => Content::Reset,
        };
        let bytes = if let Content::Bytes(bytes) = &content { bytes.len() } else { 0 };
        load.bytes.fetch_add(bytes, Relaxed);
        // In order, also when the delay has become shorter.
        last = last.max(shared.book().clocks[direction as usize].send(now, bytes, &wire));
        let more = bytes > 0;
        if parcels.send(Parcel { due: last, content }).is_err() || !more {
            return;
        }
    }
}

/// Hands over what has arrived.
async fn deliver(
    to: &TcpStream,
    direction: Direction,
    entry: &Entry,
    load: &Load,
    mut parcels: mpsc::UnboundedReceiver<Parcel>,
) -> Option<End> {
    let shared = &entry.shared;
    let mut settings = shared.settings.subscribe();
    let messages = settings.borrow().messages;
    let mut frames = Frames::default();
    let (mut lost, mut released) = (false, None);
    while let Some(Parcel { due, content }) = parcels.recv().await {
        if due > Instant::now() {
            sleep_until(due.into()).await;
        }
        if settings.borrow_and_update().overtakes(entry.number) {
            let _ = settings.wait_for(|settings| !settings.overtakes(entry.number)).await;
            released = Some(Instant::now());
        }
        let _ = settings.wait_for(|settings| settings.flow[direction as usize] != Flow::Held).await;
        lost |= shared.flow(direction) == Flow::Lost || entry.is_forgotten();
        let size = if let Content::Bytes(bytes) = &content { bytes.len() } else { 0 };
        if released.is_some_and(|released| due <= released) {
            shared.book().late += size as u64;
        }
        if lost {
            load.taken(size);
            continue;
        }
        if settings.borrow().records
            && let Content::Bytes(bytes) = &content
        {
            shared.record(entry.number, direction, bytes);
        }
        let mut units = Vec::new();
        match &content {
            Content::Bytes(bytes) if messages => {
                frames.push(bytes);
                units.extend(std::iter::from_fn(|| frames.next()));
            }
            Content::Bytes(bytes) => units.push(Unit { bytes: bytes.clone(), is_message: false }),
            Content::Fin | Content::Reset => units.extend(frames.rest()),
        }
        for unit in units {
            let (bytes, ends) = shared.harmed(direction, unit);
            let written = write(to, &bytes).await;
            if written.is_ok() {
                shared.book().delivered[direction as usize] += bytes.len() as u64;
            }
            if ends {
                return Some(End::Closed);
            }
            if written.is_err() {
                let told = shared.flow(opposite(direction)) != Flow::Lost;
                if told && !entry.is_forgotten() {
                    return Some(End::Reset);
                }
                // The receiver is gone, and the news of it is lost.
                lost = true;
                break;
            }
        }
        load.taken(size);
        match content {
            Content::Bytes(_) => {}
            Content::Fin => drop(SockRef::from(to).shutdown(std::net::Shutdown::Write)),
            Content::Reset => return Some(End::Reset),
        }
    }
    None
}

fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Up => Direction::Down,
        Direction::Down => Direction::Up,
    }
}

async fn write(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
