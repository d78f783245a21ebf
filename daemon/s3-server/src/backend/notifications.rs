//! Who is told of what happens in a bucket.

use s3s::dto::*;
use s3s::{S3Request, S3Response, s3_error};

use super::{Answer, Backend, admitted};
use crate::documents::{self, NOTIFICATIONS};
use crate::error::from_store;
use crate::notifications::{self, Herald};

pub(super) async fn get(
    request: S3Request<GetBucketNotificationConfigurationInput>,
) -> Answer<GetBucketNotificationConfigurationOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let found: Option<NotificationConfiguration> =
        serving.run(move |store| documents::find(store, &bucket, NOTIFICATIONS)).await?;
    let found = found.unwrap_or_default();
    Ok(S3Response::new(GetBucketNotificationConfigurationOutput {
        queue_configurations: found.queue_configurations,
        topic_configurations: found.topic_configurations,
        ..GetBucketNotificationConfigurationOutput::default()
    }))
}

pub(super) async fn put(
    backend: &Backend,
    request: S3Request<PutBucketNotificationConfigurationInput>,
) -> Answer<PutBucketNotificationConfigurationOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let herald = Herald::of(&request, &admission);
    let PutBucketNotificationConfigurationInput {
        notification_configuration: mut asked,
        skip_destination_validation,
        ..
    } = request.input;
    let rules = notifications::read(&asked)?;
    let unknown = rules.iter().find(|rule| !backend.webhooks.contains(&rule.destination));
    if let Some(rule) = unknown.filter(|_| skip_destination_validation != Some(true)) {
        return Err(s3_error!(
            InvalidArgument,
            "this node has no webhook {}: its operator names them in [[s3.webhooks]]",
            rule.destination
        ));
    }
    // Messages and clients name a configuration by its id: one that has none is given one.
    let topics = asked.topic_configurations.iter_mut().flatten().map(|topic| &mut topic.id);
    let queues = asked.queue_configurations.iter_mut().flatten().map(|queue| &mut queue.id);
    for (number, id) in topics.chain(queues).enumerate() {
        id.get_or_insert_with(|| format!("notification-{}", number + 1));
    }
    let test = herald.test(&rules);
    serving
        .run(move |store| {
            if rules.is_empty() {
                return documents::remove(store, &bucket, NOTIFICATIONS);
            }
            documents::put(store, &bucket, NOTIFICATIONS, &asked)?;
            store.note(&bucket, test).map_err(|error| from_store(&error))
        })
        .await?;
    Ok(S3Response::new(PutBucketNotificationConfigurationOutput::default()))
}
