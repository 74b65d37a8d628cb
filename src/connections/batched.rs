//! Collects what a connection writes at about the same time into one write to the socket.
//!
//! On a busy connection many answers become ready one after the other, and HTTP/2 flushes after each. A write
//! to a socket costs more than a decision, so a flush first lets the tasks that are ready now run, and then
//! writes what all of them produced. Without such tasks it is delayed by one turn of the scheduler.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Maximum number of bytes that wait.
const WAITING_MAX: usize = 16 * 1024;

/// Stream whose writes are collected until they are flushed.
#[derive(Debug)]
pub struct Batched<S> {
    stream: S,
    waiting: Vec<u8>,
    /// Number of bytes of `waiting` that the stream has taken.
    taken: usize,
    /// Whether the flush under way has let the other tasks run.
    has_yielded: bool,
}

impl<S: AsyncWrite + Unpin> Batched<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, waiting: vec![], taken: 0, has_yielded: false }
    }

    /// Writes everything that waits.
    fn drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.waiting.get(self.taken..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.stream).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                taken => self.taken += taken,
            }
        }
        self.waiting.clear();
        self.taken = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Batched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Batched<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.waiting.len() >= WAITING_MAX {
            ready!(self.drain(context))?;
        }
        let before = self.waiting.len();
        for slice in slices {
            let room = WAITING_MAX.saturating_sub(self.waiting.len());
            self.waiting.extend_from_slice(slice.get(..room).unwrap_or(slice));
        }
        Poll::Ready(Ok(self.waiting.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.waiting.is_empty() {
            if !std::mem::replace(&mut self.has_yielded, true) {
                // A task that wakes itself runs again after those that are ready now.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(self.drain(context))?;
            self.has_yielded = false;
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.drain(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn writes_arrive_in_order_and_a_slow_reader_bounds_what_waits() {
        let (mut reader, writer) = tokio::io::duplex(1000);
        let mut writer = Batched::new(writer);
        let sent: Vec<u8> = (0..100_000_u32).map(|at| at.to_le_bytes()[0]).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            for part in sent.chunks(777) {
                writer.write_all(part).await.expect("written");
                assert!(writer.waiting.len() <= WAITING_MAX);
            }
            writer.shutdown().await.expect("shut down");
        });
        let mut read = vec![];
        reader.read_to_end(&mut read).await.expect("read");
        writing.await.expect("the writer ended");
        assert_eq!(read, expected);
    }

    #[tokio::test]
    async fn a_flush_writes_what_other_tasks_write_meanwhile() {
        let (mut reader, writer) = tokio::io::duplex(1000);
        let mut writer = Batched::new(writer);
        writer.write_all(b"one").await.expect("written");
        std::future::poll_fn(|context| {
            assert!(Pin::new(&mut writer).poll_flush(context).is_pending());
            Poll::Ready(())
        })
        .await;
        writer.write_all(b"two").await.expect("written");
        writer.flush().await.expect("flushed");
        let mut read = [0; 6];
        assert_eq!(reader.read(&mut read).await.expect("read"), 6);
        assert_eq!(&read, b"onetwo");
    }
}
