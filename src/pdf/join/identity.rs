//! The metadata and identifiers of the joined file: the first part's, and made from those of all parts.

use sha2::{Digest as _, Sha256};

use super::super::file::{PdfFile, Stream};
use super::super::value::{Dictionary, array};
use super::strings::decode;
use super::{Expect, Expected, push_text};

/// How many hexadecimal digits an identifier has.
const IDENTIFIER_LEN: usize = 32;

/// What identifies the parts.
pub(super) struct Identity {
    /// The XMP metadata of the first part, as a stream object.
    metadata: Option<Vec<u8>>,
    /// The first part's document identifier, if it is the same in all parts: the document is the same one.
    document_id: Option<Vec<u8>>,
    document_ids: Sha256,
    instance_ids: Sha256,
}

impl Identity {
    /// That of the first part.
    pub fn new(file: &PdfFile, catalog: &Dictionary) -> Expect<Self> {
        let metadata = catalog.get("/Metadata").map(|metadata| file.object_of(metadata).map(<[u8]>::to_vec));
        Ok(Self {
            metadata: metadata.map(|metadata| metadata.ok_or(Expected("metadata"))).transpose()?,
            document_id: Some(identifiers(file)?[0].clone()),
            document_ids: Sha256::new(),
            instance_ids: Sha256::new(),
        })
    }

    /// Adds those of a part; the first one is a part too.
    pub fn add(&mut self, file: &PdfFile) -> Expect<()> {
        let [document_id, instance_id] = identifiers(file)?;
        for (digest, id) in [(&mut self.document_ids, &document_id), (&mut self.instance_ids, &instance_id)] {
            digest.update(id.len().to_be_bytes());
            digest.update(id);
        }
        self.document_id.take_if(|first| *first != document_id);
        Ok(())
    }

    /// The trailer's `/ID`, and the XMP metadata for so many pages, as a stream object.
    pub fn finish(self, pages: usize) -> Expect<(Vec<u8>, Option<Vec<u8>>)> {
        let instance_id = identifier(self.instance_ids);
        let document_id = match self.document_id {
            Some(id) => String::from_utf8(id).map_err(|_| Expected("identifiers of letters and digits"))?,
            None => identifier(self.document_ids),
        };
        let values = [
            ("xmpTPg:NPages", pages.to_string()),
            ("xmpMM:DocumentID", document_id.clone()),
            ("xmpMM:InstanceID", instance_id.clone()),
            ("stEvt:instanceID", format!("{instance_id}_source")),
        ];
        let metadata = self.metadata.map(|metadata| with_elements(&metadata, &values)).transpose()?;
        let mut ids = b"[".to_vec();
        push_text(&mut ids, format_args!("({document_id})({instance_id})]"));
        Ok((ids, metadata))
    }
}

/// The identifiers of a file: the document's, and those of these very bytes.
fn identifiers(file: &PdfFile) -> Expect<[Vec<u8>; 2]> {
    let read = || {
        let (_, ids) = file.trailer().find(|(key, _)| *key == b"/ID")?;
        let ids: Vec<Vec<u8>> = array(ids)?.into_iter().map(decode).collect::<Option<_>>()?;
        <[Vec<u8>; 2]>::try_from(ids).ok()
    };
    // They are written again as they are, and in XML.
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=-_".contains(byte);
    read().filter(|ids| ids.iter().flatten().all(is_plain)).ok_or(Expected("two identifiers of letters and digits"))
}

fn identifier(digest: Sha256) -> String {
    let mut identifier = Vec::new();
    digest.finalize().iter().for_each(|byte| push_text(&mut identifier, format_args!("{byte:02x}")));
    identifier.truncate(IDENTIFIER_LEN);
    String::from_utf8_lossy(&identifier).into_owned()
}

/// The metadata with other text in these elements, wherever they stand.
fn with_elements(metadata: &[u8], values: &[(&str, String)]) -> Expect<Vec<u8>> {
    let stream = Stream::parse(metadata).ok_or(Expected("metadata in a stream"))?;
    let mut text = std::str::from_utf8(stream.data).map_err(|_| Expected("metadata in UTF-8"))?.to_owned();
    for (name, value) in values {
        text = with_element(&text, name, value);
    }
    stream.with_data(text.as_bytes()).ok_or(Expected("metadata that are not compressed"))
}

fn with_element(text: &str, name: &str, value: &str) -> String {
    let (begin, end) = (format!("<{name}>"), format!("</{name}>"));
    let mut out = String::with_capacity(text.len() + 64);
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(&begin) {
        let Some((_, after)) = after.split_once(&end) else { break };
        out.extend([before, &begin, value, &end]);
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_an_element_is_replaced_wherever_it_stands() {
        let text = "<a><b>1</b></a><b></b><c>1</c>";
        assert_eq!(with_element(text, "b", "22"), "<a><b>22</b></a><b>22</b><c>1</c>");
        assert_eq!(with_element("<b>1</b><b>2", "b", "3"), "<b>3</b><b>2");
    }
}
