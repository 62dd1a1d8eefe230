//! Definitions of shapes: are they right, what do they cost, and those that have a name.

use tidegate_proto::v1::{
    DefineShapeRequest, DeleteShapeRequest, DescribeShapeRequest, ExplainShapeRequest, ListShapesRequest, ShapeKey,
    ShapeSelection, ValidateShapeRequest, shapes_client::ShapesClient,
};
use tonic::transport::Channel;

use crate::{Client, ClientError, Shape};

pub use tidegate_proto::v1::{
    DescribeShapeResponse as DescribedShape, ExplainShapeResponse as ExplainedShape, FormerShape, NamedShape,
    ShapeColumn, ShapeLookup, ShapeResidual, ValidateShapeResponse as ValidShape,
    shape_lookup::Kind as ShapeLookupKind,
};

impl Client {
    /// Is the shape right? It costs the server nothing. The source may be empty where the server has one.
    ///
    /// # Errors
    /// The server cannot be reached, or it is refused: the text says where and why.
    pub async fn validate_shape(&self, source: &str, shape: &Shape) -> Result<ValidShape, ClientError> {
        let request = ValidateShapeRequest { source: source.to_owned(), shape: Some(shape.clone().into_proto()) };
        let reply = self.shapes_client().validate(request).await;
        Ok(reply.map_err(|status| ClientError::from_status(&status))?.into_inner())
    }

    /// How the rows that concern the shape are found, and what is evaluated for them. Each parameter needs a value.
    ///
    /// # Errors
    /// As of [`validate_shape`](Self::validate_shape).
    pub async fn explain_shape(&self, source: &str, shape: &Shape) -> Result<ExplainedShape, ClientError> {
        let request = ExplainShapeRequest { source: source.to_owned(), shape: Some(shape.clone().into_proto()) };
        let reply = self.shapes_client().explain(request).await;
        Ok(reply.map_err(|status| ClientError::from_status(&status))?.into_inner())
    }

    /// Gives a definition a name, or defines the name anew: those who have it open receive the difference. Its parameters have types
    /// ([`Parameter::of_type`](crate::Parameter::of_type)) and no values.
    ///
    /// # Errors
    /// The server cannot be reached, the definition is refused, or the server's configuration declares the name.
    pub async fn define_shape(&self, source: &str, name: &str, shape: Shape) -> Result<NamedShape, ClientError> {
        let shape = ShapeSelection { name: name.to_owned(), ..shape.into_proto() };
        self.define(source, shape).await
    }

    async fn define(&self, source: &str, shape: ShapeSelection) -> Result<NamedShape, ClientError> {
        let request = DefineShapeRequest { source: source.to_owned(), shape: Some(shape) };
        let reply = self.shapes_client().define(request).await;
        Ok(reply.map_err(|status| ClientError::from_status(&status))?.into_inner().shape.unwrap_or_default())
    }

    /// The named shapes of a source, or, where it is empty, of all.
    ///
    /// # Errors
    /// The server cannot be reached, or has no such source.
    pub async fn shapes(&self, source: &str) -> Result<Vec<NamedShape>, ClientError> {
        let mut shapes: Vec<NamedShape> = Vec::new();
        loop {
            let name = |shape: &NamedShape| shape.definition.as_ref().map(|shape| shape.name.clone());
            let key = |shape: &NamedShape| {
                Some(ShapeKey { source: shape.source.clone(), name: name(shape).unwrap_or_default() })
            };
            let request = ListShapesRequest { source: source.to_owned(), after: shapes.last().and_then(key) };
            let reply = self.shapes_client().list(request).await;
            let page = reply.map_err(|status| ClientError::from_status(&status))?.into_inner();
            let is_last = !page.more || page.shapes.is_empty();
            shapes.extend(page.shapes);
            if is_last {
                return Ok(shapes);
            }
        }
    }

    /// A named shape, with its columns.
    ///
    /// # Errors
    /// The server cannot be reached, or has no such shape.
    pub async fn describe_shape(&self, source: &str, name: &str) -> Result<DescribedShape, ClientError> {
        let request = DescribeShapeRequest { source: source.to_owned(), name: name.to_owned() };
        let reply = self.shapes_client().describe(request).await;
        Ok(reply.map_err(|status| ClientError::from_status(&status))?.into_inner())
    }

    /// Takes a name away. Those who have the shape open receive an error.
    ///
    /// # Errors
    /// The server cannot be reached, has no such shape, or its configuration declares it.
    pub async fn delete_shape(&self, source: &str, name: &str) -> Result<(), ClientError> {
        let request = DeleteShapeRequest { source: source.to_owned(), name: name.to_owned() };
        let reply = self.shapes_client().delete(request).await;
        reply.map(|_| ()).map_err(|status| ClientError::from_status(&status))
    }

    fn shapes_client(&self) -> ShapesClient<Channel> {
        ShapesClient::new(self.channel())
    }
}
