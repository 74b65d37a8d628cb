//! Accepts the authority that gRPC clients in C, Python and Ruby send over a Unix socket: the path of the socket,
//! percent-encoded (`%2Frun%2Fcountersign.sock`). It is no authority by RFC 3986, so the HTTP/2 library would end the
//! stream. The percent signs are replaced while the bytes are read; nothing uses the authority.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Length of what a client sends before its first frame (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// Length of a frame's header.
const FRAME_HEADER: usize = 9;
/// Type of the frames that contain the headers of a request.
const HEADERS: u8 = 1;
/// The name of the header as a literal, after its length (RFC 7541, section 5.2). These clients don't compress it, and
/// later requests refer to this one.
const NAME: &[u8] = b"\x0a:authority";

/// Stream of a Unix socket, in whose first request the authority is made a valid one.
#[derive(Debug)]
pub struct Authority<S> {
    stream: S,
    at: At,
}

/// Position in what the client has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Number of bytes left of the preface or of a frame's payload.
    Skipped(usize),
    /// Number of bytes read of a frame's header, the payload's length so far, and the frame's type.
    Frame(usize, usize, u8),
    /// Within the headers of the first request: bytes left, and the progress of the search.
    Headers(usize, Search),
    /// The first request was read.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Search {
    /// The bytes before are this many of [`NAME`].
    Name(usize),
    /// The name was read, so this byte is the length of the value.
    Length,
    /// Number of bytes left of the value.
    Value(usize),
}

impl At {
    /// Takes the next byte, replaces it if it must be replaced, and returns the position behind it.
    fn next(self, byte: &mut u8) -> Self {
        match self {
            Self::Done => Self::Done,
            Self::Skipped(left) if left > 1 => Self::Skipped(left - 1),
            Self::Skipped(_) => Self::Frame(0, 0, 0),
            Self::Frame(read, length, kind) => {
                let value = *byte;
                let (length, kind) = match read {
                    0..3 => (length << 8 | usize::from(value), kind),
                    3 => (length, value),
                    _ => (length, kind),
                };
                match (read + 1, length) {
                    (FRAME_HEADER, 0) => Self::Frame(0, 0, 0),
                    (FRAME_HEADER, length) if kind == HEADERS => Self::Headers(length, Search::Name(0)),
                    (FRAME_HEADER, length) => Self::Skipped(length),
                    (read, length) => Self::Frame(read, length, kind),
                }
            }
            Self::Headers(left, search) => {
                let search = search.next(byte);
                if left > 1 { Self::Headers(left - 1, search) } else { Self::Done }
            }
        }
    }
}

impl Search {
    fn next(self, byte: &mut u8) -> Self {
        match self {
            Self::Name(read) if NAME.get(read) == Some(byte) => {
                if read + 1 == NAME.len() {
                    Self::Length
                } else {
                    Self::Name(read + 1)
                }
            }
            // Only the first byte of the name could begin it again, and it occurs once.
            Self::Name(_) => Self::Name(usize::from(NAME.first() == Some(byte))),
            // A first bit would mean that the value is compressed.
            Self::Length if (1..127).contains(byte) => Self::Value(usize::from(*byte)),
            Self::Value(left) if left > 0 => {
                if *byte == b'%' {
                    *byte = b'-';
                }
                Self::Value(left - 1)
            }
            Self::Length | Self::Value(_) => Self::Value(0),
        }
    }
}

impl<S> Authority<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, at: At::Skipped(PREFACE) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Authority<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if self.at != At::Done {
            for byte in buffer.filled_mut().iter_mut().skip(before) {
                self.at = self.at.next(byte);
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Authority<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Returns a frame of this type.
    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, 4, 0, 0, 0, 1], payload].concat()
    }

    fn headers(authority: &str) -> Vec<u8> {
        let length = u8::try_from(authority.len()).expect("short");
        let name = [b"\x83\x0a\x40", NAME, &[length]].concat();
        frame(HEADERS, &[&name, authority.as_bytes(), b"\x40\x01x\x03%2F"].concat())
    }

    #[tokio::test]
    async fn only_the_authority_of_the_first_request_changes() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
        let data = frame(0, b"\x0a:authority\x03%2F");
        for (sent, expected) in
            [("%2Frun%2Fa.sock", "-2Frun-2Fa.sock"), ("run%2Fa.sock", "run-2Fa.sock"), ("localhost", "localhost")]
        {
            let written =
                [preface, &frame(4, &[]), &frame(4, b"\x0a:authority\x03%2F"), &headers(sent), &data, &headers(sent)]
                    .concat();
            let read = [
                preface,
                &frame(4, &[]),
                &frame(4, b"\x0a:authority\x03%2F"),
                &headers(expected),
                &data,
                &headers(sent),
            ]
            .concat();
            // The client may send its bytes in pieces.
            for size in [1, 7, 1000] {
                let (reader, mut writer) = tokio::io::duplex(size);
                let mut stream = Authority::new(reader);
                let written = written.clone();
                let writing = tokio::spawn(async move { writer.write_all(&written).await });
                let mut found = vec![];
                stream.read_to_end(&mut found).await.expect("read");
                assert!(writing.await.is_ok_and(|written| written.is_ok()));
                assert_eq!(found, read, "{sent} by {size}");
            }
        }
    }
}
