//! One raw cubic tcp stream between two nodes: what the link gives to anybody.

use crate::error::Result;
use lampyris_comm::transport::cubic;
use lampyris_comm::{Error as CommError, Group};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Time for the two ends to meet.
const CONNECT: Duration = Duration::from_secs(10);

/// Bytes per write.
const WRITE: usize = 1 << 20;

/// Bytes per second of one stream from member 0 to the first member of the second node, as its receiver sees it; every
/// member returns it. The start, in which a full token bucket would flatter the link, is not counted.
pub(super) fn measure(world: &Group, seconds: f64, here: IpAddr) -> Result<f64> {
    let nodes = world.nodes();
    let other = nodes.iter().position(|node| *node != nodes[0]).expect("two nodes");
    let failed = |source| CommError::io("the raw stream", source);
    let mut rate = [0f64];
    if world.member() == other {
        let listener = cubic::listen((here, 0).into()).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?.to_string();
        let mut text = [0u8; 64];
        text[..address.len()].copy_from_slice(address.as_bytes());
        world.send(&text, 0)?;
        let (stream, _) = listener.accept().map_err(failed)?;
        rate[0] = receive(stream).map_err(failed)?;
    } else if world.member() == 0 {
        let mut text = [0u8; 64];
        world.receive(&mut text, other)?;
        let text = String::from_utf8_lossy(&text);
        let address: SocketAddr = text
            .trim_end_matches('\0')
            .parse()
            .map_err(|_| CommError::Invalid("a bad address".into()))?;
        send(address, Duration::from_secs_f64(seconds)).map_err(failed)?;
    }
    world.broadcast(&mut rate, other)?;
    Ok(rate[0])
}

fn send(address: SocketAddr, time: Duration) -> std::io::Result<()> {
    let mut stream = TcpStream::from(cubic::connect(address, CONNECT)?);
    let bytes = vec![0u8; WRITE];
    let until = Instant::now() + time;
    while Instant::now() < until {
        stream.write_all(&bytes)?;
    }
    Ok(())
}

fn receive(mut stream: TcpStream) -> std::io::Result<f64> {
    let mut bytes = vec![0u8; WRITE];
    // Skip what the bucket holds, and slow start.
    let mut skipped = 0;
    while skipped < 16 * WRITE {
        skipped += stream.read(&mut bytes)?.max(1);
    }
    let (start, mut total) = (Instant::now(), 0usize);
    let mut last = start;
    loop {
        match stream.read(&mut bytes)? {
            0 => return Ok(total as f64 / (last - start).as_secs_f64()),
            n => {
                total += n;
                last = Instant::now();
            }
        }
    }
}
