//! The dependency graph that `cargo metadata` resolves, and rules over its edges.
//!
//! Only edges that end in a program count: normal dependencies. What a crate's tests or build scripts use never
//! reaches a daemon.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cargo_metadata::{CargoOpt, DependencyKind, Metadata, MetadataCommand};

/// Crate names and the normal dependencies between them.
#[derive(Clone, Debug)]
pub struct Graph {
    edges: BTreeMap<String, BTreeSet<String>>,
    /// Workspace crates by name, with their folder below the workspace root.
    members: BTreeMap<String, String>,
    /// Features that a workspace crate's normal dependency asks for: (crate, dependency, feature).
    features: Vec<(String, String, String)>,
}

impl Graph {
    /// Resolves the workspace as it stands, with every optional feature on.
    ///
    /// # Panics
    /// Where cargo cannot resolve it: a broken workspace fails the test that asks.
    pub fn of_workspace() -> Self {
        let manifest = crate::workspace_root().join("Cargo.toml");
        let metadata = MetadataCommand::new()
            .manifest_path(manifest)
            .features(CargoOpt::AllFeatures)
            .other_options(vec!["--locked".to_owned()])
            .exec()
            .expect("cargo metadata resolves the workspace");
        Self::from_metadata(&metadata)
    }

    fn from_metadata(metadata: &Metadata) -> Self {
        let resolve = metadata.resolve.as_ref().expect("cargo metadata was asked to resolve");
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in &resolve.nodes {
            // Two versions of one crate share a node here: a rule means the crate, whatever its version.
            let from = edges.entry(metadata[&node.id].name.to_string()).or_default();
            for dependency in &node.deps {
                if dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal) {
                    from.insert(metadata[&dependency.pkg].name.to_string());
                }
            }
        }
        let mut members = BTreeMap::new();
        let mut features = Vec::new();
        for package in metadata.workspace_packages() {
            let folder = package.manifest_path.parent().expect("a manifest lies in a folder");
            let folder = folder.strip_prefix(&metadata.workspace_root).unwrap_or(folder);
            members.insert(package.name.to_string(), folder.to_string());
            for dependency in package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal) {
                for feature in &dependency.features {
                    features.push((package.name.to_string(), dependency.name.clone(), feature.clone()));
                }
            }
        }
        Self { edges, members, features }
    }

    /// The same graph with one more edge, to plant a breach.
    #[must_use]
    pub fn with_edge(mut self, from: &str, to: &str) -> Self {
        self.edges.entry(from.to_owned()).or_default().insert(to.to_owned());
        self
    }

    /// The same graph in which `from` asks `dependency` for `feature`, to plant a breach.
    #[must_use]
    pub fn with_feature(mut self, from: &str, dependency: &str, feature: &str) -> Self {
        self.features.push((from.to_owned(), dependency.to_owned(), feature.to_owned()));
        self
    }

    /// Workspace crates whose folder begins with one of `folders`.
    pub fn members_under(&self, folders: &[&str]) -> Vec<String> {
        let inside = |folder: &str| folders.iter().any(|start| folder.starts_with(start));
        self.members.iter().filter(|(_, folder)| inside(folder)).map(|(name, _)| name.clone()).collect()
    }

    /// Whether cargo knows a crate of this name at all.
    pub fn knows(&self, name: &str) -> bool {
        self.edges.contains_key(name)
    }

    /// The shortest chain of dependencies from one crate to another, both ends included.
    pub fn path(&self, from: &str, to: &str) -> Option<Vec<String>> {
        let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            for next in self.edges.get(at).into_iter().flatten() {
                if next == from || came_from.contains_key(next.as_str()) {
                    continue;
                }
                came_from.insert(next, at);
                if next == to {
                    let mut chain = vec![to.to_owned()];
                    let mut step = to;
                    while let Some(before) = came_from.get(step) {
                        chain.push((*before).to_owned());
                        step = before;
                    }
                    chain.reverse();
                    return Some(chain);
                }
                queue.push_back(next);
            }
        }
        None
    }

    fn depends_directly(&self, from: &str, to: &str) -> bool {
        self.edges.get(from).is_some_and(|targets| targets.contains(to))
    }
}

/// One line of the drawing. `why` ends up in the failure, so that it teaches.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// None of `from` reaches any of `to`, through however many crates.
    Unreachable { from: &'static [&'static str], to: &'static [&'static str], why: &'static str },
    /// None of `from` names any of `to` in its own manifest.
    NotDirect { from: &'static [&'static str], to: &'static [&'static str], why: &'static str },
    /// Of the crates that are built into programs, only `dependents` name `target` in their manifest.
    OnlyBy { target: &'static str, dependents: &'static [&'static str], why: &'static str },
    /// No crate that is built into a program asks for this feature of any crate.
    FeatureOff { feature: &'static str, why: &'static str },
}

/// Folders whose crates are built into programs; `tests/` and `benches/` are not.
pub const PROGRAM_FOLDERS: &[&str] = &["daemon/", "hardware/"];

impl Rule {
    /// Every crate that the rule names.
    fn names(self) -> Vec<&'static str> {
        match self {
            Self::Unreachable { from, to, .. } | Self::NotDirect { from, to, .. } => [from, to].concat(),
            Self::OnlyBy { target, dependents, .. } => [&[target], dependents].concat(),
            Self::FeatureOff { .. } => Vec::new(),
        }
    }

    /// Each breach of this rule as a sentence.
    pub fn breaches(self, graph: &Graph) -> Vec<String> {
        let mut found: Vec<String> = self
            .names()
            .into_iter()
            .filter(|name| !graph.knows(name))
            .map(|name| format!("a rule names `{name}`, which cargo does not know: mend the rule ({self:?})"))
            .collect();
        match self {
            Self::Unreachable { from, to, why } => {
                for (one, other) in pairs(from, to) {
                    if let Some(chain) = graph.path(one, other) {
                        found.push(format!("{}: {why}", chain.join(" -> ")));
                    }
                }
            }
            Self::NotDirect { from, to, why } => {
                for (one, other) in pairs(from, to) {
                    if graph.depends_directly(one, other) {
                        found.push(format!("{one} -> {other}: {why}"));
                    }
                }
            }
            Self::OnlyBy { target, dependents, why } => {
                for member in graph.members_under(PROGRAM_FOLDERS) {
                    if !dependents.contains(&member.as_str()) && graph.depends_directly(&member, target) {
                        found.push(format!("{member} -> {target}: {why}"));
                    }
                }
            }
            Self::FeatureOff { feature, why } => {
                let members = graph.members_under(PROGRAM_FOLDERS);
                for (from, dependency, asked) in &graph.features {
                    if asked == feature && members.contains(from) {
                        found.push(format!("{from} asks {dependency} for `{feature}`: {why}"));
                    }
                }
            }
        }
        found
    }
}

fn pairs<'a>(
    from: &'static [&'static str],
    to: &'a [&'static str],
) -> impl Iterator<Item = (&'static str, &'static str)> + 'a {
    from.iter().flat_map(move |one| to.iter().map(move |other| (*one, *other)))
}
