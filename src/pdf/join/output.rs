//! The joined file while it is being written, in one of the two forms that a file may have.

use std::borrow::Cow;

use super::super::compact::{CompactError, Packer, check_count};
use super::super::file::PdfFile;

/// Objects in the order in which they come, each of a number that was allocated before.
pub(super) enum Output {
    /// They are compressed at once, so that what there is of the file takes little memory.
    Compacted(Box<Packer>),
    /// They wait for the file's end; object 1 comes first.
    Plain(Vec<Option<Vec<u8>>>),
}

impl Output {
    pub fn new(header: &[u8], compact: bool) -> Self {
        if compact { Self::Compacted(Box::new(Packer::new(header, 0))) } else { Self::Plain(Vec::new()) }
    }

    /// A number that no object has yet.
    pub fn allocate(&mut self) -> Result<u32, CompactError> {
        let number = match self {
            Self::Compacted(packer) => packer.allocate(),
            Self::Plain(objects) => {
                objects.push(None);
                objects.len()
            }
        };
        check_count(number)?;
        u32::try_from(number).map_err(|_| CompactError::TooManyObjects { objects: number })
    }

    /// Writes an object.
    pub fn put(&mut self, number: u32, content: &[u8]) -> Result<(), CompactError> {
        match self {
            Self::Compacted(packer) => packer.put(number as usize, content)?,
            Self::Plain(objects) => objects[number as usize - 1] = Some(content.to_vec()),
        }
        Ok(())
    }

    /// Writes an object that has no number yet.
    pub fn add(&mut self, content: &[u8]) -> Result<u32, CompactError> {
        let number = self.allocate()?;
        self.put(number, content)?;
        Ok(number)
    }

    /// Ends the file, with a trailer of these entries and its size.
    pub fn finish(self, header: &[u8], trailer: &[(&[u8], Vec<u8>)], root: u32) -> Result<Vec<u8>, CompactError> {
        let trailer = trailer.iter().map(|(key, value)| (*key, &value[..]));
        match self {
            Self::Compacted(packer) => packer.finish(trailer),
            Self::Plain(objects) => {
                let objects = objects.into_iter().map(|object| object.map(Cow::Owned)).collect();
                Ok(PdfFile::new(header, objects, trailer.collect(), root as usize).write())
            }
        }
    }
}
