//! The server behind every tunnel, and its clients: takes bytes, gives bytes, echoes, answers HTTP. Plain threads with
//! large buffers, so that what is measured is the tunnel.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Bytes moved at a time.
const BUFFER: usize = 256 * 1024;

/// Connections served at the same time.
const WORKERS: usize = 24;

/// What `GET` is answered with.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok";

/// What is asked with.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Which way the bytes of a transfer go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the laptop to the workspace.
    Up,
    /// From the workspace to the laptop.
    Down,
}

/// Starts a server for everything; gives its port. It lives as long as the program.
pub fn serve() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    for _ in 0..WORKERS {
        let listener = listener.try_clone()?;
        std::thread::spawn(move || {
            let mut buffer = vec![0x5a; BUFFER];
            while let Ok((stream, _)) = listener.accept() {
                // A client that leaves in the middle is its own affair.
                let _ = attend(stream, &mut buffer);
            }
        });
    }
    Ok(port)
}

/// Starts a server that answers the first byte of each connection with one, and then holds it.
pub fn serve_idle() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept() {
            let mut byte = [0];
            if stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {
                held.push(stream);
            }
        }
    });
    Ok(port)
}

fn attend(mut stream: TcpStream, buffer: &mut [u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    match &kind {
        b"u" => {
            let mut left = length(&mut stream)?;
            while left > 0 {
                let most = buffer.len().min(left);
                let n = stream.read(&mut buffer[..most])?;
                if n == 0 {
                    return Ok(());
                }
                left -= n;
            }
            stream.write_all(b"!")
        }
        b"d" => {
            let mut left = length(&mut stream)?;
            while left > 0 {
                let n = buffer.len().min(left);
                stream.write_all(&buffer[..n])?;
                left -= n;
            }
            Ok(())
        }
        b"G" => {
            let mut request = vec![b'G'];
            loop {
                while !request.ends_with(b"\r\n\r\n") {
                    let n = stream.read(&mut buffer[..4096])?;
                    if n == 0 {
                        return Ok(());
                    }
                    request.extend_from_slice(&buffer[..n]);
                }
                request.clear();
                stream.write_all(ANSWER)?;
            }
        }
        byte => {
            stream.write_all(byte)?;
            stream.read(&mut kind).map(drop)
        }
    }
}

fn length(stream: &mut TcpStream) -> std::io::Result<usize> {
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    Ok(u64::from_be_bytes(length) as usize)
}

/// Moves `bytes` in all over `streams` connections to `port`, each until the last byte is known to have arrived.
pub fn transfer(port: u16, direction: Direction, streams: usize, bytes: usize) -> Result<Duration> {
    let began = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..streams).map(|_| scope.spawn(move || one_transfer(port, direction, bytes / streams))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a transfer does not panic"))
    })?;
    Ok(began.elapsed())
}

fn one_transfer(port: u16, direction: Direction, bytes: usize) -> Result<()> {
    let mut stream = ask(port, direction, bytes)?;
    let mut buffer = vec![0xa5; BUFFER];
    let mut left = bytes;
    while left > 0 {
        let most = buffer.len().min(left);
        left -= match direction {
            Direction::Up => stream.write(&buffer[..most])?,
            Direction::Down => {
                let n = stream.read(&mut buffer[..most])?;
                ensure!(n > 0, "the transfer was cut with {left} bytes to go");
                n
            }
        };
    }
    if direction == Direction::Up {
        stream.read_exact(&mut [0]).context("the other side took all and did not say so")?;
    }
    Ok(())
}

/// One transfer without an end, until `stop`.
pub fn saturate(port: u16, direction: Direction, stop: &AtomicBool) -> Result<()> {
    let mut stream = ask(port, direction, isize::MAX as usize)?;
    let mut buffer = vec![0xa5; BUFFER];
    while !stop.load(Relaxed) {
        match direction {
            Direction::Up => stream.write_all(&buffer)?,
            Direction::Down => stream.read_exact(&mut buffer)?,
        }
    }
    Ok(())
}

fn ask(port: u16, direction: Direction, bytes: usize) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    let kind = if direction == Direction::Up { b'u' } else { b'd' };
    stream.write_all(&[&[kind][..], &(bytes as u64).to_be_bytes()].concat())?;
    Ok(stream)
}

/// Connects, sends a byte, has it back.
pub fn touch(port: u16) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    stream.write_all(b"e")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// Seconds that each of `count` small requests on one connection takes.
pub fn requests(port: u16, count: usize) -> Result<Vec<f64>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    let mut answer = [0; ANSWER.len()];
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        stream.write_all(REQUEST)?;
        stream.read_exact(&mut answer)?;
        took.push(began.elapsed().as_secs_f64());
    }
    ensure!(answer == ANSWER, "the answer came back changed");
    Ok(took)
}
