//! The rows of a shape, once: an answer that is read as it comes.
//!
//! Invariant: the token is known only when the answer has come to its end, so that whoever goes on there has every row.

use std::{collections::HashMap, sync::Arc};

use bytes::{Bytes, BytesMut};
use tidegate_proto::v1::{self, order_by::Nulls, query_shape_response::What, shapes_client::ShapesClient};
use tonic::Streaming;

use crate::{Client, ClientError, Position, RowType, Shape, ShapeRow, Token, Violation};

/// A term of an order, as in ORDER BY: a column, or an expression as conditions have them.
#[derive(Clone, Debug, PartialEq)]
pub struct OrderBy(v1::OrderBy);

impl OrderBy {
    /// From the least, NULLs last.
    pub fn ascending(expression: impl Into<String>) -> Self {
        OrderBy(v1::OrderBy { expression: expression.into(), ..v1::OrderBy::default() })
    }

    /// From the greatest, NULLs first.
    pub fn descending(expression: impl Into<String>) -> Self {
        OrderBy(v1::OrderBy { descending: true, ..Self::ascending(expression).0 })
    }

    /// NULLs before all else.
    #[must_use]
    pub fn nulls_first(self) -> Self {
        OrderBy(v1::OrderBy { nulls: Nulls::First as i32, ..self.0 })
    }

    /// NULLs behind all else.
    #[must_use]
    pub fn nulls_last(self) -> Self {
        OrderBy(v1::OrderBy { nulls: Nulls::Last as i32, ..self.0 })
    }
}

/// What [`Client::query`] asks for: the rows of a shape, in an order and up to a limit.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    shape: Shape,
    order: Vec<OrderBy>,
    limit: u64,
}

impl Query {
    /// All rows of a shape, in no order that means anything.
    #[must_use]
    pub fn of(shape: Shape) -> Self {
        Query { shape, order: Vec::new(), limit: 0 }
    }

    /// In this order; another one counts where rows are alike in those before, and behind the last the key. It needs a limit.
    #[must_use]
    pub fn order_by(mut self, term: OrderBy) -> Self {
        self.order.push(term);
        self
    }

    /// So many rows at most; 0 for all.
    #[must_use]
    pub fn limit(self, limit: u64) -> Self {
        Query { limit, ..self }
    }
}

impl Client {
    /// The rows of a shape as they are at one position, out of the server's mirror. The source may be empty where the server has one.
    ///
    /// ```no_run
    /// use tidegate_client::{Client, OrderBy, Query, Shape, Start, Subscription};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = Client::connect("http://127.0.0.1:7171").await?;
    /// let open = || Shape::of("orders").matching("tenant_id = $1").parameter(7_i64);
    /// let largest = Query::of(open()).order_by(OrderBy::descending("total").nulls_last()).limit(10);
    /// let mut rows = client.query("shop", largest).await?;
    /// while let Some(row) = rows.next().await? {
    ///     println!("{:?}", row.json()?);
    /// }
    /// if let Some(token) = rows.token() {
    ///     let changes = client.subscribe(Subscription::shape(open()).source("shop").from(Start::Token(token.clone())));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The server cannot be reached, or it refuses the query: the text says where and why.
    pub async fn query(&self, source: &str, query: Query) -> Result<QueryRows, ClientError> {
        let request = v1::QueryShapeRequest {
            source: source.to_owned(),
            shape: Some(query.shape.into_proto()),
            order_by: query.order.into_iter().map(|term| term.0).collect(),
            limit: query.limit,
            row_types: true,
        };
        let reply = ShapesClient::new(self.channel()).query(request).await;
        let mut responses = reply.map_err(|status| ClientError::from_status(&status))?.into_inner();
        let Some(What::Begin(begin)) = response(&mut responses).await? else { return Err(unexpected("at the start")) };
        let position = begin.position.parse().map_err(|cause| Violation::Position { text: begin.position, cause })?;
        Ok(QueryRows { responses, position, row_types: HashMap::new(), token: None })
    }
}

/// Rows as they come. From [`Client::query`].
#[derive(Debug)]
pub struct QueryRows {
    responses: Streaming<v1::QueryShapeResponse>,
    position: Position,
    row_types: HashMap<u32, Arc<RowType>>,
    token: Option<Token>,
}

impl QueryRows {
    /// Where the rows are as they are here.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Behind the last row: where a subscription to the same shape goes on with what changes it.
    #[must_use]
    pub fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// The next row; None behind the last. Read on: the server gives a query a minute.
    ///
    /// # Errors
    /// The connection is lost, or the server cannot go on. What was received may not be all.
    pub async fn next(&mut self) -> Result<Option<ShapeRow>, ClientError> {
        if self.token.is_some() {
            return Ok(None);
        }
        loop {
            match response(&mut self.responses).await? {
                Some(What::RowType(row_type)) => {
                    self.row_types.insert(row_type.row_type, Arc::new(RowType::from(row_type)));
                }
                Some(What::Row(row)) => return self.row(row).await.map(Some),
                Some(What::End(end)) => {
                    let token = end.token.parse().map_err(|_| Violation::Unknown("token"))?;
                    self.token = Some(token);
                    return Ok(None);
                }
                Some(What::Begin(_)) => return Err(unexpected("amid the rows")),
                None => return Err(ClientError::Closed),
            }
        }
    }

    /// All that are left.
    ///
    /// # Errors
    /// As of [`next`](Self::next).
    pub async fn all(&mut self) -> Result<Vec<ShapeRow>, ClientError> {
        let mut rows = Vec::new();
        while let Some(row) = self.next().await? {
            rows.push(row);
        }
        Ok(rows)
    }

    /// A row with what of it follows in other responses.
    async fn row(&mut self, first: v1::QueryRow) -> Result<ShapeRow, ClientError> {
        let row_type = self.row_types.get(&first.row_type).cloned().ok_or(Violation::RowType(first.row_type))?;
        let bytes = Bytes::from(first.row.ok_or(Violation::Unknown("row"))?.value);
        if !first.continues {
            return Ok(ShapeRow::new(row_type, bytes));
        }
        let mut whole = BytesMut::from(&bytes[..]);
        loop {
            match response(&mut self.responses).await? {
                Some(What::Row(v1::QueryRow { row: None, rest, continues, .. })) => {
                    whole.extend_from_slice(&rest);
                    if !continues {
                        return Ok(ShapeRow::new(row_type, whole.freeze()));
                    }
                }
                Some(_) => return Err(unexpected("within a row")),
                None => return Err(ClientError::Closed),
            }
        }
    }
}

async fn response(responses: &mut Streaming<v1::QueryShapeResponse>) -> Result<Option<What>, ClientError> {
    let response = responses.message().await.map_err(|status| ClientError::from_status(&status))?;
    response.map(|response| response.what.ok_or_else(|| Violation::Unknown("response").into())).transpose()
}

fn unexpected(state: &'static str) -> ClientError {
    Violation::Unexpected { message: "a response of a query", state }.into()
}
