//! HTTP/1.1 as far as it has to be understood to pass it on: where heads and bodies end.

use anyhow::{Context as _, Result, bail};
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longest head that is taken.
const HEAD_MAX: usize = 64 << 10;

/// A connection and what was read of it beyond what was taken.
pub(crate) struct Conn {
    pub(crate) stream: TcpStream,
    buffer: BytesMut,
}

/// First line and headers, as they came.
pub(crate) struct Head(String);

/// How a body ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Length {
    Bytes(u64),
    Chunked,
}

/// How much of a body is still to come.
pub(crate) enum Body {
    Left(u64),
    /// Bytes up to the next line that tells a chunk's size; whether the last one was told.
    Chunks(u64, bool),
}

impl Length {
    pub(crate) fn body(self) -> Body {
        match self {
            Length::Bytes(bytes) => Body::Left(bytes),
            Length::Chunked => Body::Chunks(0, false),
        }
    }
}

impl Head {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    pub(crate) fn method(&self) -> &str {
        self.word(0)
    }

    pub(crate) fn target(&self) -> &str {
        self.word(1)
    }

    fn word(&self, nth: usize) -> &str {
        self.0.lines().next().and_then(|line| line.split(' ').nth(nth)).unwrap_or_default()
    }

    fn header(&self, wanted: &str) -> Option<&str> {
        let headers = self.0.lines().skip(1).filter_map(|line| line.split_once(':'));
        headers.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
    }

    /// Of a request, or of an answer to one that has a body.
    pub(crate) fn length(&self, answer: bool) -> Result<Length> {
        if answer && matches!(self.word(1), "204" | "304") {
            return Ok(Length::Bytes(0));
        }
        if self.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            return Ok(Length::Chunked);
        }
        match self.header("content-length") {
            Some(length) => Ok(Length::Bytes(length.parse().context("content-length")?)),
            None if answer => bail!("an answer without a length"),
            None => Ok(Length::Bytes(0)),
        }
    }
}

impl Conn {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: BytesMut::with_capacity(256 << 10) }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes).await?)
    }

    /// More into the buffer; false at the end of the stream.
    async fn fill(&mut self) -> Result<bool> {
        self.buffer.reserve(256 << 10);
        Ok(self.stream.read_buf(&mut self.buffer).await? > 0)
    }

    /// The next head; `None` when the other end has gone between two.
    pub(crate) async fn head(&mut self) -> Result<Option<Head>> {
        loop {
            if let Some(at) = self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head = self.buffer.split_to(at + 4);
                return Ok(Some(Head(String::from_utf8(head.to_vec())?)));
            }
            if self.buffer.len() > HEAD_MAX {
                bail!("a head of {} bytes", self.buffer.len());
            }
            if !self.fill().await? {
                return if self.buffer.is_empty() { Ok(None) } else { bail!("cut off in a head") };
            }
        }
    }

    /// The next piece of a body, of at most `most` bytes, as it came; `None` at its end.
    pub(crate) async fn body(&mut self, body: &mut Body, most: usize) -> Result<Option<Bytes>> {
        let left = match body {
            Body::Left(left) => left,
            Body::Chunks(left, last) => {
                if *left == 0 {
                    if *last {
                        return Ok(None);
                    }
                    let (line, size) = self.chunk_size().await?;
                    // The chunk's size line itself, the chunk, and the line end behind it.
                    (*left, *last) = ((line + size + 2) as u64, size == 0);
                }
                left
            }
        };
        if *left == 0 {
            return Ok(None);
        }
        while self.buffer.is_empty() {
            if !self.fill().await? {
                bail!("cut off in a body");
            }
        }
        let take = self.buffer.len().min(most).min(usize::try_from(*left)?);
        *left -= take as u64;
        Ok(Some(self.buffer.split_to(take).freeze()))
    }

    /// Bytes of the line that tells the next chunk's size, and that size; nothing is taken.
    async fn chunk_size(&mut self) -> Result<(usize, usize)> {
        loop {
            if let Some(at) = self.buffer.windows(2).position(|bytes| bytes == b"\r\n") {
                let line = std::str::from_utf8(&self.buffer[..at])?;
                let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16)?;
                return Ok((at + 2, size));
            }
            if !self.fill().await? {
                bail!("cut off in a chunk");
            }
        }
    }

    /// Drops a body.
    pub(crate) async fn skip(&mut self, length: &Length) -> Result<()> {
        let mut body = length.body();
        while let Some(mut piece) = self.body(&mut body, usize::MAX).await? {
            piece.advance(piece.len());
        }
        Ok(())
    }
}
