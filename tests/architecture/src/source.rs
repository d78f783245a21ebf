//! The workspace's sources as flat token streams, with what only tests build marked as such.
//!
//! Tokens, not text: a comment or a string literal never matches a pattern, and the body of a macro does.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// One token, groups opened up. A literal keeps its text for attributes; patterns never contain one.
#[derive(Clone, Debug)]
pub struct Token {
    pub text: String,
    pub line: usize,
    is_literal: bool,
    /// Whether only tests build it: inside an item under `#[cfg(test)]`, `#[test]`, or a test-only feature.
    pub is_test: bool,
}

/// A source file.
#[derive(Clone, Debug)]
pub struct Source {
    /// Path below the workspace root.
    pub path: PathBuf,
    /// The crate's folder below the workspace root, such as `daemon/pool`.
    pub package: String,
    pub text: String,
    pub tokens: Vec<Token>,
}

impl Source {
    /// Reads tokens from `text`.
    ///
    /// # Panics
    /// Where the text is not Rust.
    pub fn parse(path: &Path, package: &str, text: &str, all_test: bool) -> Self {
        let stream = TokenStream::from_str(text)
            .unwrap_or_else(|error| panic!("{} is not Rust: {error}", path.display()));
        let mut tokens = Vec::new();
        flatten(stream, all_test, &mut tokens);
        Self { path: path.to_path_buf(), package: package.to_owned(), text: text.to_owned(), tokens }
    }

    /// Lines at which `pattern`, itself Rust tokens, stands in what programs are built from.
    pub fn lines_in_program(&self, pattern: &str) -> Vec<usize> {
        self.matches(pattern).filter(|at| !self.tokens[*at].is_test).map(|at| self.tokens[at].line).collect()
    }

    /// Lines at which `pattern` stands, tests included.
    pub fn lines(&self, pattern: &str) -> Vec<usize> {
        self.matches(pattern).map(|at| self.tokens[at].line).collect()
    }

    fn matches(&self, pattern: &str) -> impl Iterator<Item = usize> + '_ {
        let wanted = pattern_tokens(pattern);
        let end = (self.tokens.len() + 1).saturating_sub(wanted.len());
        (0..end).filter(move |at| {
            wanted
                .iter()
                .zip(&self.tokens[*at..])
                .all(|(want, token)| !token.is_literal && *want == token.text)
        })
    }

    /// Every `struct` or `enum` with the traits that its `#[derive]`s name, helper paths cut to their last part.
    pub fn type_definitions(&self) -> Vec<TypeDefinition> {
        let mut found = Vec::new();
        let mut derives: BTreeSet<String> = BTreeSet::new();
        let mut at = 0;
        while at < self.tokens.len() {
            let text = self.tokens[at].text.as_str();
            if text == "#" && self.is(at + 1, "[") {
                let end = self.closing(at + 1);
                // `cfg_attr(..., derive(...))` counts as well: anywhere in the attribute.
                if let Some(start) = (at..end).find(|index| self.is(*index, "derive")) {
                    derives.extend(self.tokens[start + 1..end].iter().map(|token| token.text.clone()));
                }
                at = end;
                continue;
            }
            let is_definition = matches!(text, "struct" | "enum" | "union");
            if is_definition && self.tokens.get(at + 1).is_some_and(|next| is_identifier(&next.text)) {
                found.push(TypeDefinition {
                    name: self.tokens[at + 1].text.clone(),
                    line: self.tokens[at].line,
                    derives: std::mem::take(&mut derives),
                    body: self.body(at + 2),
                    is_test: self.tokens[at].is_test,
                });
            } else if matches!(text, "fn" | "impl" | "mod" | "trait" | "use" | "const" | "static" | ";") {
                derives.clear();
            }
            at += 1;
        }
        found
    }

    fn is(&self, at: usize, text: &str) -> bool {
        self.tokens.get(at).is_some_and(|token| token.text == text && !token.is_literal)
    }

    /// Index just past the bracket that closes the one at `open`.
    fn closing(&self, open: usize) -> usize {
        let mut depth = 0_usize;
        for (index, token) in self.tokens.iter().enumerate().skip(open) {
            if token.is_literal {
                continue;
            }
            match token.text.as_str() {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => {
                    depth -= 1;
                    if depth == 0 {
                        return index + 1;
                    }
                }
                _ => {}
            }
        }
        self.tokens.len()
    }

    /// The tokens of a type's fields: up to the `;` of a unit or tuple struct, or the closing brace.
    fn body(&self, from: usize) -> Vec<String> {
        let mut at = from;
        while at < self.tokens.len() {
            if self.is(at, ";") {
                break;
            }
            if self.is(at, "{") {
                at = self.closing(at);
                break;
            }
            at = if self.is(at, "(") || self.is(at, "[") { self.closing(at) } else { at + 1 };
        }
        self.tokens[from..at.min(self.tokens.len())].iter().map(|token| token.text.clone()).collect()
    }
}

/// A type as its source defines it.
#[derive(Clone, Debug)]
pub struct TypeDefinition {
    pub name: String,
    pub line: usize,
    pub derives: BTreeSet<String>,
    /// Generics and fields as tokens.
    pub body: Vec<String>,
    pub is_test: bool,
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

fn pattern_tokens(pattern: &str) -> Vec<String> {
    // An unbalanced pattern such as `#[ignore` is not a token stream: split it by character class instead.
    let mut tokens = Vec::new();
    let mut word = String::new();
    for c in pattern.chars() {
        if c.is_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            tokens.push(std::mem::take(&mut word));
        }
        if !c.is_whitespace() {
            tokens.push(c.to_string());
        }
    }
    if !word.is_empty() {
        tokens.push(word);
    }
    tokens
}

/// Opens groups up. An attribute that only tests satisfy marks everything up to the end of its item.
fn flatten(stream: TokenStream, inside_test: bool, out: &mut Vec<Token>) {
    let mut item_is_test = false;
    let mut trees = stream.into_iter().peekable();
    while let Some(tree) = trees.next() {
        let line = tree.span().start().line;
        let is_test = inside_test || item_is_test;
        let mut push = |text: &str, is_literal| {
            out.push(Token { text: text.to_owned(), line, is_literal, is_test });
        };
        match &tree {
            TokenTree::Ident(ident) => push(&ident.to_string(), false),
            TokenTree::Literal(literal) => push(&literal.to_string(), true),
            TokenTree::Punct(punct) => {
                push(&punct.as_char().to_string(), false);
                if punct.as_char() == '#'
                    && let Some(TokenTree::Group(group)) = trees.peek()
                    && group.delimiter() == Delimiter::Bracket
                    && is_test_attribute(&group.stream().to_string())
                {
                    item_is_test = true;
                }
                if punct.as_char() == ';' {
                    item_is_test = false;
                }
            }
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                push(open, false);
                flatten(group.stream(), is_test, out);
                let line = group.span_close().start().line;
                out.push(Token { text: close.to_owned(), line, is_literal: false, is_test });
                if group.delimiter() == Delimiter::Brace {
                    item_is_test = false;
                }
            }
        }
    }
}

/// Whether an attribute's text says that what follows is built for tests only.
fn is_test_attribute(attribute: &str) -> bool {
    let flat: String = attribute.chars().filter(|c| !c.is_whitespace()).collect();
    let names_tests = flat.contains("(test") || flat.contains(",test") || flat.contains("\"simulated\"");
    flat == "test" || (flat.starts_with("cfg(") && names_tests && !flat.contains("not("))
}

/// Every Rust file of the workspace's crates: sources, their tests and benches.
///
/// # Panics
/// Where a file cannot be read.
pub fn workspace_sources() -> Vec<Source> {
    let root = crate::workspace_root();
    let mut packages = Vec::new();
    for group in ["daemon", "hardware", "tests"] {
        for entry in fs::read_dir(root.join(group)).expect("the workspace has this folder") {
            let folder = entry.expect("a readable folder").path();
            if folder.join("Cargo.toml").is_file() {
                packages.push(folder);
            }
        }
    }
    packages.extend(["benches", "image-build", "image-build/init"].map(|folder| root.join(folder)));
    packages.sort();
    let mut sources = Vec::new();
    for package in packages {
        let mut files = Vec::new();
        rust_files(&package, &mut files);
        files.sort();
        let package_name = relative(&package, &root).display().to_string();
        let test_modules = out_of_line_test_modules(&files);
        for file in files {
            let text = fs::read_to_string(&file).expect("a readable source");
            let in_src = file.starts_with(package.join("src"));
            let all_test = !in_src || test_modules.contains(&file);
            sources.push(Source::parse(&relative(&file, &root), &package_name, &text, all_test));
        }
    }
    sources
}

fn relative(path: &Path, root: &Path) -> PathBuf {
    path.strip_prefix(root).unwrap_or(path).to_path_buf()
}

fn rust_files(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Deliberately wrong programs that a test shows to the compiler are read by that test; a package inside another is one
        // of its own.
        if path.is_dir()
            && !path.join("Cargo.toml").is_file()
            && !matches!(name.as_str(), "target" | "compile-fail" | "compile_fail" | "ui" | "fuzz")
        {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

/// Files that a `#[cfg(test)] mod name;` brings in, found beside the file that names them.
fn out_of_line_test_modules(files: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(file).expect("a readable source");
        let source = Source::parse(file, "", &text, false);
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let folder = file.parent().expect("a file lies in a folder");
        let nested = if matches!(stem.as_str(), "lib" | "main" | "mod") {
            folder.to_path_buf()
        } else {
            folder.join(&stem)
        };
        for window in source.tokens.windows(3) {
            if window[0].text == "mod" && window[2].text == ";" && window[0].is_test {
                let name = &window[1].text;
                found.insert(nested.join(format!("{name}.rs")));
                found.insert(nested.join(name).join("mod.rs"));
            }
        }
    }
    // What a test module brings in is test code as well.
    let inside: Vec<PathBuf> = files
        .iter()
        .filter(|file| found.iter().any(|module| file.starts_with(module.with_extension(""))))
        .cloned()
        .collect();
    found.extend(inside);
    found
}
