//! `tidegate.v1.Shapes`: definitions of shapes, with a name or without, and their rows once (`query.rs`).
//!
//! It deliberately keeps none: the application does (`named_shapes.rs`).

use std::{collections::BTreeMap, pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt as _, stream};
use prost::Message as _;
use tidegate_model::ShapeName;
use tidegate_proto::v1::{
    self,
    shape_lookup::Kind,
    shapes_server::{Shapes, ShapesServer},
};
use tidegate_views::{Explanation, Index, LookupKind, Served, Shape};
use tonic::{Request, Response, Status};

use crate::{
    facts::Known,
    named_shapes::{NOW, NamedShape, NamingError, is_by_name, known, resolved},
    query::Querying,
    selection::Tables,
    shape,
    shared::Shared,
    snapshots::Described,
    source::Source,
    status::GatewayError,
    time::timestamp,
};

/// A page of List: bytes and shapes, and one shape more.
const PAGE_BYTES: usize = 256 << 10;
const PAGE_SHAPES: usize = 1_000;

/// The service.
pub(crate) struct ShapeService {
    shared: Arc<Shared>,
}

impl ShapeService {
    pub(crate) fn server(shared: Arc<Shared>) -> ShapesServer<Self> {
        let limit = shared.config.request_bytes_max;
        ShapesServer::new(ShapeService { shared }).max_decoding_message_size(limit)
    }

    fn answer<T>(&self, answered: Result<T, GatewayError>) -> Result<Response<T>, Status> {
        answered.map(Response::new).map_err(|error| {
            self.shared.metrics.error(error.reason());
            error.to_tonic()
        })
    }

    /// A definition, checked against its table.
    async fn checked(
        &self,
        source: &Source,
        definition: &v1::ShapeSelection,
    ) -> Result<(Shape, Arc<Known>), GatewayError> {
        let definition = shape::definition(definition.clone(), &self.shared.config)?;
        Tables::of(&source.handle).check_exists(&definition.table)?;
        shape::checked(definition, source).await
    }

    /// A definition, or what the name of one means.
    fn meant(&self, source: &Source, shape: Option<v1::ShapeSelection>) -> Result<v1::ShapeSelection, GatewayError> {
        let selection = shape.unwrap_or_default();
        if is_by_name(&selection) {
            let shapes = Arc::clone(&source.handle.named_shapes.known().borrow());
            return resolved(selection, &shapes, NOW).map(|(definition, ..)| definition);
        }
        if !selection.name.is_empty() {
            named(&selection)?;
        }
        Ok(selection)
    }

    async fn validated(&self, request: v1::ValidateShapeRequest) -> Result<v1::ValidateShapeResponse, GatewayError> {
        let source = self.shared.sources.get(&request.source)?;
        let definition = self.meant(&source, request.shape)?;
        let (shape, known) = self.checked(&source, &definition).await?;
        let is_whole = definition.parameters.iter().all(|parameter| parameter.value.is_some());
        let condition = if is_whole { shape.predicate().normal_form().to_owned() } else { String::new() };
        Ok(v1::ValidateShapeResponse { condition, columns: columns(&shape, &known.described) })
    }

    async fn explained(&self, request: v1::ExplainShapeRequest) -> Result<v1::ExplainShapeResponse, GatewayError> {
        let source = self.shared.sources.get(&request.source)?;
        let definition = self.meant(&source, request.shape)?;
        let mut numbered = (1..).zip(&definition.parameters);
        if let Some((number, _)) = numbered.find(|(_, parameter)| parameter.value.is_none()) {
            return Err(GatewayError::Naming(NamingError::NoValue { number }));
        }
        let (shape, _) = self.checked(&source, &definition).await?;
        let explanation = Index::<u32>::new().explain(shape.predicate());
        Ok(explained(shape.predicate().normal_form(), &explanation))
    }

    async fn defined(&self, request: v1::DefineShapeRequest) -> Result<v1::DefineShapeResponse, GatewayError> {
        let source = self.shared.sources.get(&request.source)?;
        let definition = request.shape.unwrap_or_default();
        let name = named(&definition)?;
        let (shape, _) = self.checked(&source, &definition).await?;
        let definition = v1::ShapeSelection { table: shape.table().to_string(), ..definition };
        let shape = source.handle.named_shapes.define(name, definition).await?;
        Ok(v1::DefineShapeResponse { shape: Some(shown(&source, &shape)) })
    }

    fn listed(&self, request: v1::ListShapesRequest) -> Result<v1::ListShapesResponse, GatewayError> {
        let sources: Vec<Arc<Source>> = match request.source.as_str() {
            "" => self.shared.sources.iter().cloned().collect(),
            name => vec![self.shared.sources.get(name)?],
        };
        let after = request.after.map(|after| (after.source, after.name));
        let mut response = v1::ListShapesResponse::default();
        let mut byte_count = 0;
        for source in sources {
            let shapes = Arc::clone(&source.handle.named_shapes.known().borrow());
            for (name, shape) in shapes.iter() {
                let key = (source.name().to_string(), name.to_string());
                if after.as_ref().is_some_and(|after| key <= *after) {
                    continue;
                }
                if byte_count > PAGE_BYTES || response.shapes.len() == PAGE_SHAPES {
                    response.more = true;
                    return Ok(response);
                }
                let shape = shown(&source, shape);
                byte_count += shape.encoded_len();
                response.shapes.push(shape);
            }
        }
        Ok(response)
    }

    async fn described(&self, request: v1::DescribeShapeRequest) -> Result<v1::DescribeShapeResponse, GatewayError> {
        let source = self.shared.sources.get(&request.source)?;
        let shapes = Arc::clone(&source.handle.named_shapes.known().borrow());
        let (_, shape) = known(&request.name, &shapes)?;
        let (columns, problem) = match self.checked(&source, &shape.definition).await {
            Ok((checked, known)) => (columns(&checked, &known.described), String::new()),
            Err(error) => (Vec::new(), error.to_string()),
        };
        let shown = v1::NamedShape { former: shape.former_to_proto(), ..shown(&source, &shape) };
        Ok(v1::DescribeShapeResponse { shape: Some(shown), columns, problem })
    }

    async fn deleted(&self, request: v1::DeleteShapeRequest) -> Result<v1::DeleteShapeResponse, GatewayError> {
        let source = self.shared.sources.get(&request.source)?;
        let shapes = Arc::clone(&source.handle.named_shapes.known().borrow());
        let (name, _) = known(&request.name, &shapes)?;
        source.handle.named_shapes.delete(name).await?;
        Ok(v1::DeleteShapeResponse {})
    }
}

/// The name of a definition that may be kept: its subscribers give the values.
fn named(definition: &v1::ShapeSelection) -> Result<ShapeName, GatewayError> {
    if definition.name.is_empty() {
        return Err(GatewayError::Naming(NamingError::Nameless));
    }
    let name = definition.name.parse()?;
    let mut numbered = (1..).zip(&definition.parameters);
    match numbered.find(|(_, parameter)| parameter.value.is_some()) {
        Some((number, _)) => Err(GatewayError::Naming(NamingError::Value { number })),
        None => Ok(name),
    }
}

fn shown(source: &Source, shape: &NamedShape) -> v1::NamedShape {
    v1::NamedShape {
        source: source.name().to_string(),
        definition: Some(shape.definition.clone()),
        version: shape.version,
        declared: shape.is_declared(),
        defined: shape.defined_us.map(timestamp),
        former: Vec::new(),
    }
}

/// What is delivered of the table.
fn columns(shape: &Shape, described: &Described) -> Vec<v1::ShapeColumn> {
    let Described { facts, key, type_names, .. } = described;
    let is_selected =
        |name: &String| key.contains(name) || shape.columns().is_none_or(|selected| selected.contains(name));
    let types: BTreeMap<&String, &String> = facts.columns.iter().map(|column| &column.name).zip(type_names).collect();
    let column = |name: &String| v1::ShapeColumn {
        name: name.clone(),
        r#type: types.get(name).map_or_else(String::new, |name| (*name).clone()),
        key: key.contains(name),
    };
    facts.columns.iter().map(|column| &column.name).filter(|name| is_selected(name)).map(column).collect()
}

fn explained(condition: &str, explanation: &Explanation) -> v1::ExplainShapeResponse {
    let lookup = |served: &Served| v1::ShapeLookup {
        column: served.column.clone(),
        as_type: served.as_type.unwrap_or_default().to_owned(),
        kind: match served.kind {
            LookupKind::Value => Kind::Value,
            LookupKind::Range => Kind::Range,
            LookupKind::Null => Kind::IsNull,
            LookupKind::Element => Kind::Element,
        } as i32,
        count: u32::try_from(served.count).unwrap_or(u32::MAX),
    };
    v1::ExplainShapeResponse {
        condition: condition.to_owned(),
        summary: explanation.to_string(),
        lookups: explanation.served.iter().map(lookup).collect(),
        each_row: explanation.each_row,
        residuals: explanation.evaluated.iter().map(|columns| v1::ShapeResidual { columns: columns.clone() }).collect(),
    }
}

#[tonic::async_trait]
impl Shapes for ShapeService {
    type QueryStream = Pin<Box<dyn Stream<Item = Result<v1::QueryShapeResponse, Status>> + Send>>;

    async fn query(&self, request: Request<v1::QueryShapeRequest>) -> Result<Response<Self::QueryStream>, Status> {
        let querying = Querying::open(Arc::clone(&self.shared), request.into_inner()).await;
        let querying = self.answer(querying)?.into_inner();
        let metrics = Arc::clone(&self.shared.metrics);
        let responses = stream::unfold(querying, move |mut querying| {
            let metrics = Arc::clone(&metrics);
            async move {
                let response = querying.next().await?.map_err(|error| {
                    metrics.error(error.reason());
                    error.to_tonic()
                });
                Some((response, querying))
            }
        });
        Ok(Response::new(responses.boxed()))
    }

    async fn validate(
        &self,
        request: Request<v1::ValidateShapeRequest>,
    ) -> Result<Response<v1::ValidateShapeResponse>, Status> {
        self.answer(self.validated(request.into_inner()).await)
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainShapeRequest>,
    ) -> Result<Response<v1::ExplainShapeResponse>, Status> {
        self.answer(self.explained(request.into_inner()).await)
    }

    async fn define(
        &self,
        request: Request<v1::DefineShapeRequest>,
    ) -> Result<Response<v1::DefineShapeResponse>, Status> {
        self.answer(self.defined(request.into_inner()).await)
    }

    async fn list(&self, request: Request<v1::ListShapesRequest>) -> Result<Response<v1::ListShapesResponse>, Status> {
        self.answer(self.listed(request.into_inner()))
    }

    async fn describe(
        &self,
        request: Request<v1::DescribeShapeRequest>,
    ) -> Result<Response<v1::DescribeShapeResponse>, Status> {
        self.answer(self.described(request.into_inner()).await)
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteShapeRequest>,
    ) -> Result<Response<v1::DeleteShapeResponse>, Status> {
        self.answer(self.deleted(request.into_inner()).await)
    }
}
