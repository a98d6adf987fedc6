//! Configuration files with `{{NAME}}` in them.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// The values of the placeholders.
#[derive(Debug, Clone, Default)]
pub struct Values(Vec<(&'static str, String)>);

impl Values {
    /// No values.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more value; a later one of the same name counts.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.0.retain(|(other, _)| *other != name);
        self.0.push((name, value.to_string()));
        self
    }

    /// The text with its placeholders replaced.
    ///
    /// # Errors
    /// When it has one without a value: a typo must not become part of a configuration.
    pub fn render(&self, text: &str) -> Result<String> {
        let mut out = String::with_capacity(text.len() + 1024);
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            out.push_str(before);
            let Some((name, after)) = after.split_once("}}") else { bail!("a placeholder is not closed") };
            let Some((_, value)) = self.0.iter().find(|(other, _)| *other == name) else {
                bail!("the placeholder {name:?} has no value");
            };
            out.push_str(value);
            rest = after;
        }
        out.push_str(rest);
        Ok(out)
    }

    /// Renders a file, or each file of a folder, to another place.
    ///
    /// # Errors
    /// When something cannot be read, rendered or written; names the file.
    pub fn render_to(&self, from: &Path, to: &Path) -> Result<()> {
        let shown = from.display();
        if from.is_dir() {
            std::fs::create_dir_all(to).with_context(|| to.display().to_string())?;
            for entry in std::fs::read_dir(from).with_context(|| shown.to_string())? {
                let entry = entry.with_context(|| shown.to_string())?;
                self.render_to(&entry.path(), &to.join(entry.file_name()))?;
            }
            return Ok(());
        }
        let text = std::fs::read_to_string(from).with_context(|| shown.to_string())?;
        let text = self.render(&text).with_context(|| shown.to_string())?;
        std::fs::write(to, text).with_context(|| to.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_replaced_and_none_is_left() {
        let values = Values::new().with("PORT", 1).with("PORT", 80).with("HOST", "a");
        assert_eq!(values.render("{{HOST}}:{{PORT}} {x} %{{PORT}}%").unwrap(), "a:80 {x} %80%");
        assert!(values.render("{{PROT}}").unwrap_err().to_string().contains("PROT"));
        assert!(values.render("{{PORT").is_err());
    }
}
