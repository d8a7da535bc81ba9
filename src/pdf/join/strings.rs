//! Strings of a PDF: what is in them, and strings with something put before that.

/// What stands in a literal or hexadecimal string (ISO 32000-1, 7.3.4).
pub(super) fn decode(string: &[u8]) -> Option<Vec<u8>> {
    match string {
        [b'(', content @ .., b')'] => Some(decode_literal(content)),
        [b'<', digits @ .., b'>'] => decode_hexadecimal(digits),
        _ => None,
    }
}

fn decode_literal(content: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(content.len());
    let mut rest = content;
    while let [byte, after @ ..] = rest {
        let (byte, len) = if *byte == b'\\' { decode_escape(after) } else { (*byte, 0) };
        decoded.push(byte);
        rest = &after[len..];
    }
    decoded
}

/// The byte that a backslash and what follows it stand for, and how much that is.
fn decode_escape(after: &[u8]) -> (u8, usize) {
    let octal = after.iter().take(3).take_while(|byte| matches!(byte, b'0'..=b'7')).count();
    match after.first() {
        Some(_) if octal > 0 => (after[..octal].iter().fold(0, |sum, digit| (sum << 3) | (digit - b'0')), octal),
        Some(b'n') => (b'\n', 1),
        Some(b'r') => (b'\r', 1),
        Some(b't') => (b'\t', 1),
        Some(b'b') => (8, 1),
        Some(b'f') => (12, 1),
        Some(other) => (*other, 1),
        None => (b'\\', 0),
    }
}

fn decode_hexadecimal(digits: &[u8]) -> Option<Vec<u8>> {
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    pairs.iter().map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// Appends the string with `prefix`, which has nothing in it that would be escaped, before its content.
pub(super) fn push_prefixed(out: &mut Vec<u8>, string: &[u8], prefix: &str) {
    let (opener, content) = string.split_at(1);
    out.extend_from_slice(opener);
    if opener == b"<" {
        prefix.bytes().for_each(|byte| super::push_text(out, format_args!("{byte:02X}")));
    } else {
        out.extend_from_slice(prefix.as_bytes());
    }
    out.extend_from_slice(content);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_is_decoded_whichever_way_it_is_written() {
        assert_eq!(decode(b"(a(b)\\)\\\\\\n\\344\\0)").unwrap(), b"a(b))\\\n\xe4\0");
        assert_eq!(decode(b"<61E4>").unwrap(), b"a\xe4");
        assert_eq!(decode(b"()").unwrap(), b"");
        for broken in [&b""[..], b"(", b"<6>", b"<6x>", b"/Name", b"(a"] {
            assert_eq!(decode(broken), None, "{:?}", broken.escape_ascii().to_string());
        }
    }

    #[test]
    fn a_prefix_stands_before_the_content_whichever_way_it_is_written() {
        for string in [&b"(a(b)\\n)"[..], b"<61E4>", b"()"] {
            let mut prefixed = Vec::new();
            push_prefixed(&mut prefixed, string, "0007.");
            assert_eq!(decode(&prefixed).unwrap(), [b"0007.", &decode(string).unwrap()[..]].concat());
        }
    }
}
