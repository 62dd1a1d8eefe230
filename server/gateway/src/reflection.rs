//! gRPC server reflection, v1 and v1alpha, over the API's files and the files of all row types.
//!
//! ```text
//! proto::DESCRIPTOR_SET, health, reflection ──▶ fixed pool ──┐
//! store.row_types() of every source ──────────▶ row pool ────┴─▶ answers
//! ```
//!
//! The row pool is built again by the first question after a row type was added: a pool ignores a changed file of a name that
//! it has. It deliberately has no task of its own; who never asks costs nothing.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{Stream, StreamExt as _};
use prost_reflect::{DescriptorPool, FileDescriptor};
use tidegate_schema::Descriptors;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_reflection::pb::{v1, v1alpha};

use crate::{shared::Shared, status::GatewayError};

/// Both versions of the service.
#[derive(Clone)]
pub(crate) struct ReflectionService {
    shared: Arc<Shared>,
    fixed: DescriptorPool,
    rows: Arc<Mutex<Rows>>,
}

/// The row pool and what it was built from: the number of changes of each source's row types.
#[derive(Default)]
struct Rows {
    built_from: Option<Vec<u64>>,
    pool: DescriptorPool,
}

/// A question, in either version.
enum Question {
    File(String),
    Symbol(String),
    Extension(String, i32),
    ExtensionNumbers(String),
    Services,
    Nothing,
}

/// Its answer.
enum Answer {
    Files(Vec<Vec<u8>>),
    Numbers(String, Vec<i32>),
    Services(Vec<String>),
    Error(Code, String),
}

impl ReflectionService {
    /// # Errors
    /// The descriptor sets that are built in cannot be read.
    pub(crate) fn new(shared: Arc<Shared>) -> Result<Self, GatewayError> {
        let mut fixed = DescriptorPool::new();
        let sets = [
            tidegate_proto::DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            v1::FILE_DESCRIPTOR_SET,
            v1alpha::FILE_DESCRIPTOR_SET,
        ];
        for set in sets {
            fixed.decode_file_descriptor_set(set).map_err(|error| GatewayError::Descriptors(error.to_string()))?;
        }
        Ok(ReflectionService { shared, fixed, rows: Arc::default() })
    }

    /// The pools as of now. Building takes milliseconds for hundreds of tables, so it is done aside.
    async fn pools(&self) -> Result<[DescriptorPool; 2], GatewayError> {
        let (shared, rows) = (Arc::clone(&self.shared), Arc::clone(&self.rows));
        let current = tokio::task::spawn_blocking(move || {
            let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
            // Asked before the row types are read: a change between the two is built again, not missed.
            let stores = || shared.sources.iter().map(|source| &source.handle.store);
            let versions: Vec<u64> = stores().map(|store| *store.row_types_changed().borrow()).collect();
            if rows.built_from.as_ref() != Some(&versions) {
                let row_types: Vec<_> = stores().map(tidegate_store::Store::row_types).collect();
                let all = row_types.iter().flat_map(|row_types| row_types.iter()).map(|row_type| row_type.proto());
                let built = Descriptors::build(all).map_err(|error| GatewayError::Descriptors(error.to_string()))?;
                *rows = Rows { built_from: Some(versions), pool: built.pool().clone() };
            }
            Ok::<_, GatewayError>(rows.pool.clone())
        });
        let rows = current.await.map_err(|error| GatewayError::Descriptors(error.to_string()))??;
        Ok([self.fixed.clone(), rows])
    }

    async fn answer(&self, question: Question) -> Answer {
        let pools = match self.pools().await {
            Ok(pools) => pools,
            Err(error) => {
                tracing::error!(%error, "reflection cannot describe the tables");
                return Answer::Error(Code::Internal, error.to_string());
            }
        };
        let missing = |what: String| Answer::Error(Code::NotFound, format!("{what} is not known here"));
        let file = |file: Option<FileDescriptor>, what: String| match file {
            Some(file) => Answer::Files(vec![file.encode_to_vec()]),
            None => missing(what),
        };
        match question {
            Question::File(name) => file(pools.iter().find_map(|pool| pool.get_file_by_name(&name)), name),
            Question::Symbol(name) => file(pools.iter().find_map(|pool| file_of_symbol(pool, &name)), name),
            Question::Extension(name, number) => {
                let found = pools.iter().find_map(|pool| file_of_extension(pool, &name, number));
                file(found, format!("extension {number} of {name}"))
            }
            Question::ExtensionNumbers(name) => {
                let found = pools.iter().find_map(|pool| pool.get_message_by_name(&name));
                match found {
                    Some(message) => {
                        let numbers = message.extensions().map(|extension| extension.number().cast_signed());
                        Answer::Numbers(name, numbers.collect())
                    }
                    None => missing(name),
                }
            }
            Question::Services => {
                Answer::Services(self.fixed.services().map(|service| service.full_name().to_owned()).collect())
            }
            Question::Nothing => {
                Answer::Error(Code::InvalidArgument, "a reflection request must ask for something".to_owned())
            }
        }
    }
}

/// The file that declares a message, enum, service or extension, or something within one.
fn file_of_symbol(pool: &DescriptorPool, name: &str) -> Option<FileDescriptor> {
    let declared = |name: &str| {
        let message = pool.get_message_by_name(name).map(|message| message.parent_file());
        message
            .or_else(|| pool.get_enum_by_name(name).map(|found| found.parent_file()))
            .or_else(|| pool.get_service_by_name(name).map(|service| service.parent_file()))
            .or_else(|| pool.get_extension_by_name(name).map(|extension| extension.parent_file()))
    };
    let name = name.strip_prefix('.').unwrap_or(name);
    declared(name).or_else(|| declared(name.rsplit_once('.')?.0))
}

fn file_of_extension(pool: &DescriptorPool, message: &str, number: i32) -> Option<FileDescriptor> {
    let message = pool.get_message_by_name(message)?;
    Some(message.get_extension(u32::try_from(number).ok()?)?.parent_file())
}

/// The two versions of the protocol are equal but for their package.
macro_rules! serve {
    ($version:ident) => {
        #[tonic::async_trait]
        impl $version::server_reflection_server::ServerReflection for ReflectionService {
            type ServerReflectionInfoStream =
                Pin<Box<dyn Stream<Item = Result<$version::ServerReflectionResponse, Status>> + Send>>;

            async fn server_reflection_info(
                &self,
                request: Request<Streaming<$version::ServerReflectionRequest>>,
            ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
                use $version::{
                    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
                };
                let service = self.clone();
                let answers = request.into_inner().then(move |request| {
                    let service = service.clone();
                    async move {
                        let request = request?;
                        let question = match request.message_request.clone() {
                            Some(MessageRequest::FileByFilename(name)) => Question::File(name),
                            Some(MessageRequest::FileContainingSymbol(name)) => Question::Symbol(name),
                            Some(MessageRequest::FileContainingExtension(extension)) => {
                                Question::Extension(extension.containing_type, extension.extension_number)
                            }
                            Some(MessageRequest::AllExtensionNumbersOfType(name)) => Question::ExtensionNumbers(name),
                            Some(MessageRequest::ListServices(_)) => Question::Services,
                            None => Question::Nothing,
                        };
                        let answer = match service.answer(question).await {
                            Answer::Files(file_descriptor_proto) => {
                                MessageResponse::FileDescriptorResponse($version::FileDescriptorResponse {
                                    file_descriptor_proto,
                                })
                            }
                            Answer::Numbers(base_type_name, extension_number) => {
                                MessageResponse::AllExtensionNumbersResponse($version::ExtensionNumberResponse {
                                    base_type_name,
                                    extension_number,
                                })
                            }
                            Answer::Services(names) => {
                                let service =
                                    names.into_iter().map(|name| $version::ServiceResponse { name }).collect();
                                MessageResponse::ListServicesResponse($version::ListServiceResponse { service })
                            }
                            Answer::Error(code, error_message) => {
                                MessageResponse::ErrorResponse($version::ErrorResponse {
                                    error_code: code as i32,
                                    error_message,
                                })
                            }
                        };
                        Ok($version::ServerReflectionResponse {
                            valid_host: request.host.clone(),
                            original_request: Some(request),
                            message_response: Some(answer),
                        })
                    }
                });
                Ok(Response::new(Box::pin(answers)))
            }
        }
    };
}

serve!(v1);
serve!(v1alpha);
