//! Whole objects: put, get, head, delete, list.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumAlgorithm;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};

use super::{Error, Store};

impl Store {
    /// Writes a small object in one request; an object of that key is replaced.
    pub async fn put(&self, key: &str, body: Bytes) -> Result<(), Error> {
        let timeouts = self.timeouts_for(body.len());
        let request = self.client().put_object().bucket(self.bucket()).key(key);
        let request = request.checksum_algorithm(ChecksumAlgorithm::Sha256).body(ByteStream::from(body));
        request
            .customize()
            .config_override(timeouts)
            .send()
            .await
            .map_err(|error| self.failed("write", key, &error))?;
        Ok(())
    }

    /// Reads a small object. One that is larger than `bytes_max` is an error, before it takes the memory.
    pub async fn get(&self, key: &str, bytes_max: usize) -> Result<Bytes, Error> {
        let too_large = || Error::TooLarge { key: key.to_owned(), bytes_max };
        let (mut body, bytes) = self.body(key).await?;
        if bytes > bytes_max as u64 {
            return Err(too_large());
        }
        let mut content = BytesMut::with_capacity(usize::try_from(bytes).unwrap_or(bytes_max));
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| Error::of_body(key, &error))?;
            if content.len() + chunk.len() > bytes_max {
                return Err(too_large());
            }
            content.extend_from_slice(&chunk);
        }
        Ok(content.freeze())
    }

    /// Reads an object of any size as it arrives. A body that stops short is an error of the reader, not its end.
    pub async fn get_stream(&self, key: &str) -> Result<ByteReader, Error> {
        let (body, bytes) = self.body(key).await?;
        Ok(ByteReader { body: Box::pin(body.into_async_read()), bytes })
    }

    /// The object's size in bytes; `None` when there is none of this key.
    pub async fn head(&self, key: &str) -> Result<Option<u64>, Error> {
        match self.client().head_object().bucket(self.bucket()).key(key).send().await {
            Ok(head) => Ok(Some(head.content_length().map_or(0, length))),
            Err(error) => match self.failed("look at", key, &error) {
                Error::NotFound { .. } => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Removes an object. None of that key is fine.
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        match self.client().delete_object().bucket(self.bucket()).key(key).send().await {
            Ok(_) => Ok(()),
            Err(error) => match self.failed("delete", key, &error) {
                Error::NotFound { .. } => Ok(()),
                error => Err(error),
            },
        }
    }

    /// Every key that begins with `prefix`, in order, with its size in bytes.
    pub async fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, Error> {
        let request = self.client().list_objects_v2().bucket(self.bucket()).prefix(prefix);
        let mut pages = request.into_paginator().send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.failed("list", prefix, &error))?;
            found.extend(page.contents.into_iter().flatten().filter_map(|object| {
                let bytes = object.size().map_or(0, length);
                object.key.map(|key| (key, bytes))
            }));
        }
        Ok(found)
    }

    async fn body(&self, key: &str) -> Result<(ByteStream, u64), Error> {
        let request = self.client().get_object().bucket(self.bucket()).key(key);
        let object = request.send().await.map_err(|error| self.failed("read", key, &error))?;
        let bytes = object.content_length().map_or(0, length);
        Ok((object.body, bytes))
    }
}

/// An object's bytes as they arrive.
pub struct ByteReader {
    body: Pin<Box<dyn AsyncRead + Send>>,
    bytes: u64,
}

impl ByteReader {
    /// How many bytes the store says that there are.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl AsyncRead for ByteReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.body.as_mut().poll_read(context, buffer)
    }
}

impl fmt::Debug for ByteReader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ByteReader").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// The SDK counts bytes in `i64`; no store answers with less than zero.
fn length(bytes: i64) -> u64 {
    u64::try_from(bytes).unwrap_or(0)
}
