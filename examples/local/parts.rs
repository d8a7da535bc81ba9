//! What `check` says of templates whose long documents are divided: where the text of the sample differs when it is
//! rendered in parts.

use std::error::Error;
use std::sync::Arc;

use pressrun::render::parts::PageNumbers;
use pressrun::render::text::Text;
use pressrun::render::{Document, RenderError, Renderer, pool};

use crate::check::print_all;

/// The most differences that are printed.
const MAX_DIFFERENCES: usize = 20;
/// The most characters of each side that are printed of a difference.
const MAX_CHARACTERS: usize = 240;

/// Renders a template's sample whole and in parts, and prints where the text differs, but for what is repeated on
/// each page and for where lines end. Returns `false` if a part cannot be rendered.
pub fn compare(renderer: &Arc<Renderer>, template: &str, threads: usize) -> Result<bool, Box<dyn Error>> {
    let Some(parts) = renderer.sample_in_parts(template) else { return Ok(true) };
    if parts.is_empty() {
        println!(
            "note: {template}: sample.json has fewer than three elements to divide: with more, check compares parts"
        );
        return Ok(true);
    }
    let sample = renderer.sample(template).ok_or("every template has a sample")?;
    let Some(whole) = text(renderer, sample, threads)? else { return Ok(false) };
    let Some(first_round) = texts(renderer, &parts, threads)? else { return Ok(false) };
    let Some(texts) = texts(renderer, &with_page_numbers(parts, &first_round), threads)? else { return Ok(false) };
    let count = texts.len();
    let divided: Vec<Word> =
        texts.iter().enumerate().flat_map(|(part, text)| words(text).map(move |word| (part, word))).collect();
    let whole: Vec<&str> = words(&whole).collect();
    let differences = differences(&whole, &divided);
    if differences.is_empty() {
        println!("note: {template}: in {count} parts the sample has the same text");
    } else {
        println!("note: {template}: in {count} parts the sample has another text than in one:");
        differences.iter().take(MAX_DIFFERENCES).for_each(Difference::print);
    }
    if differences.len() > MAX_DIFFERENCES {
        println!("  and {} differences more", differences.len() - MAX_DIFFERENCES);
    }
    Ok(true)
}

/// The texts of all parts. None if one of them cannot be rendered, which has been printed.
fn texts(renderer: &Renderer, parts: &[Document], threads: usize) -> Result<Option<Vec<Text>>, Box<dyn Error>> {
    parts.iter().map(|part| text(renderer, part.clone(), threads)).collect()
}

fn text(renderer: &Renderer, document: Document, threads: usize) -> Result<Option<Text>, Box<dyn Error>> {
    let part = document.part;
    match pool::on_fixed_pool(threads, || renderer.text(document))? {
        Ok(text) => Ok(Some(text)),
        Err(RenderError::UnknownTemplate) => Err("every name is a template's".into()),
        Err(RenderError::Data(diagnostics) | RenderError::Typst(diagnostics)) => {
            if let Some(part) = part {
                println!("error: the sample cannot be rendered in parts: part {} of {}", part.index + 1, part.count);
            }
            print_all(&diagnostics);
            Ok(None)
        }
    }
}

fn with_page_numbers(mut parts: Vec<Document>, texts: &[Text]) -> Vec<Document> {
    let total = texts.iter().map(|text| text.pages).sum();
    let mut before = 0;
    for (document, text) in parts.iter_mut().zip(texts) {
        if let Some(part) = &mut document.part {
            part.pages = Some(PageNumbers { before, total });
        }
        before += text.pages;
    }
    parts
}

fn words(text: &Text) -> impl Iterator<Item = &str> {
    text.pieces.iter().flat_map(|piece| piece.split_whitespace())
}

/// A word, with the index of its part.
type Word<'a> = (usize, &'a str);

/// Where the two texts differ.
#[derive(Debug, Default, PartialEq, Eq)]
struct Difference<'a> {
    /// What only the whole document has there.
    whole: Vec<&'a str>,
    /// What only the parts have there.
    divided: Vec<Word<'a>>,
}

impl Difference<'_> {
    fn print(&self) {
        if !self.whole.is_empty() {
            println!("  only in one:   {}", quoted(&self.whole));
        }
        let mut rest = &self.divided[..];
        while let [(part, _), ..] = rest {
            let end = rest.iter().position(|(other, _)| other != part).unwrap_or(rest.len());
            let words: Vec<&str> = rest[..end].iter().map(|(_, word)| *word).collect();
            println!("  only in part {}: {}", part + 1, quoted(&words));
            rest = &rest[end..];
        }
    }
}

fn quoted(words: &[&str]) -> String {
    let text = words.join(" ");
    let shown: String = text.chars().take(MAX_CHARACTERS).collect();
    let more = text.chars().count().saturating_sub(MAX_CHARACTERS);
    if more == 0 { format!("{shown:?}") } else { format!("{shown:?} and {more} characters more") }
}

/// Finds the differences that leave the longest text in common.
fn differences<'a>(whole: &[&'a str], divided: &[Word<'a>]) -> Vec<Difference<'a>> {
    let in_common = lengths_in_common(whole, divided);
    let mut found = Vec::new();
    let mut open = Difference::default();
    let (mut left, mut right) = (0, 0);
    while left < whole.len() || right < divided.len() {
        if left < whole.len() && right < divided.len() && whole[left] == divided[right].1 {
            if open != Difference::default() {
                found.push(std::mem::take(&mut open));
            }
            (left, right) = (left + 1, right + 1);
        } else if right == divided.len()
            || (left < whole.len() && in_common[left + 1][right] >= in_common[left][right + 1])
        {
            open.whole.push(whole[left]);
            left += 1;
        } else {
            open.divided.push(divided[right]);
            right += 1;
        }
    }
    if open != Difference::default() {
        found.push(open);
    }
    found
}

/// How many words the texts from each pair of places on have in common at most.
fn lengths_in_common(whole: &[&str], divided: &[Word]) -> Vec<Vec<u32>> {
    let mut lengths = vec![vec![0; divided.len() + 1]; whole.len() + 1];
    for left in (0..whole.len()).rev() {
        for right in (0..divided.len()).rev() {
            lengths[left][right] = if whole[left] == divided[right].1 {
                lengths[left + 1][right + 1] + 1
            } else {
                lengths[left + 1][right].max(lengths[left][right + 1])
            };
        }
    }
    lengths
}
