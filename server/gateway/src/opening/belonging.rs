//! The definitions that a token belongs to: those that its selections' names have now, or had before an edit.
//!
//! A token says of its definitions only whether others are the same. So they are looked for, from the newest to the oldest that is
//! remembered. Another server may have defined a shape a moment ago, and issued the token: where none is found, it is asked once
//! more what the names mean; while nobody can be asked, the client is to try again, since a Reset may be false.
//!
//! Invariant: a token costs as many definitions as its selections have had, each once, and one question, whatever it says.

use tidegate_model::{Retry, Token};
use tidegate_views::ShapeDefinition;

use super::{Opening, Selected, Start, checked_with, opened};
use crate::reset::{Refusal, definition_changed};
use crate::{
    config::GatewayConfig,
    named_shapes::{NOW, NamedInUse},
    selection::Filter,
    shape::{self, ShapeFilter},
    source::Source,
    status::GatewayError,
};

/// Definitions that have been looked at.
#[derive(Default)]
pub(super) struct Looked {
    fitting: Vec<ShapeFilter>,
    refused: Vec<ShapeDefinition>,
}

impl Looked {
    /// The shape of a definition, made where it is met first. None where it does not fit, not even later.
    pub(super) async fn shape(
        &mut self,
        definition: ShapeDefinition,
        source: &Source,
    ) -> Result<Option<ShapeFilter>, GatewayError> {
        if let Some(known) = self.fitting.iter().find(|known| *known.definition() == definition) {
            return Ok(Some(known.clone()));
        }
        if self.refused.contains(&definition) {
            return Ok(None);
        }
        match ShapeFilter::new(definition.clone(), source).await {
            Ok(shape) => {
                self.fitting.push(shape.clone());
                Ok(Some(shape))
            }
            Err(error) if matches!(error.retry(), Retry::After(_)) => Err(error),
            Err(_) => {
                self.refused.push(definition);
                Ok(None)
            }
        }
    }

    fn know(&mut self, filters: &[Filter]) {
        self.fitting.extend(filters.iter().filter_map(Filter::shape).cloned());
    }
}

fn is_of(token: Token, filters: &[Filter]) -> bool {
    token.prefix.definitions == shape::definitions(filters.iter().filter_map(Filter::shape))
}

impl Opening {
    /// The selections that the start belongs to: where it is a token, as they were when that was issued. What has become of named shapes
    /// since is told once the subscription is open.
    pub(super) async fn as_of(
        &self,
        start: Start,
        (filters, named): (Vec<Filter>, NamedInUse),
        at: (&Source, &GatewayConfig),
    ) -> Result<(Vec<Filter>, NamedInUse), Refusal> {
        let Start::Token(token) = start else { return Ok((filters, named)) };
        let mut looked = Looked::default();
        let (mut filters, mut named, mut is_asked) = (filters, named, false);
        loop {
            if is_of(token, &filters) {
                return Ok((filters, named));
            }
            looked.know(&filters);
            if self.takes_differences
                && let Some(earlier) = self.earlier(token, (&filters, &named), &mut looked, at).await?
            {
                return Ok(earlier);
            }
            if is_asked || !named.may_be_edited() {
                return Err(Refusal::Reset(definition_changed()));
            }
            at.0.handle.named_shapes.refresh().await.map_err(GatewayError::from)?;
            if !named.is_outdated() {
                return Err(Refusal::Reset(definition_changed()));
            }
            is_asked = true;
            let (selected, now) = Selected::all(&self.selections, NOW, at)?;
            (filters, named) = (opened(selected, at.0, at.1).await?, now);
        }
    }

    /// The same where a name was something else.
    async fn earlier(
        &self,
        token: Token,
        (filters, named): (&[Filter], &NamedInUse),
        looked: &mut Looked,
        at: (&Source, &GatewayConfig),
    ) -> Result<Option<(Vec<Filter>, NamedInUse)>, Refusal> {
        let table = |filter: &Filter| filter.shape().map(|shape| shape.table().clone());
        for version in named.all() {
            let Ok((selected, named)) = Selected::all(&self.selections, version, at) else { continue };
            let Some(then) = checked_with(selected, at.0, looked).await? else { continue };
            if filters.iter().map(table).eq(then.iter().map(table)) && is_of(token, &then) {
                return Ok(Some((then, named)));
            }
        }
        Ok(None)
    }
}
