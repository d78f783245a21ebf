//! GetObjectAttributes.

use objects::limits::LIST_PAGE_MAX;
use objects::{Object, ObjectPart as StoredPart};
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result};

use super::{Answer, admitted};
use crate::attributes::version;
use crate::convert::{etag, kind_name, set_checksum_fields, size, timestamp};
use crate::customer_key::{asked_key, key_of};
use crate::error::{from_store, invalid};

fn checksum(stored: &objects::Checksum) -> Checksum {
    let mut found = Checksum { checksum_type: Some(kind_name(stored.kind())), ..Checksum::default() };
    set_checksum_fields!(found, Some(stored));
    found
}

fn part(stored: &StoredPart, tells_checksums: bool) -> ObjectPart {
    let mut part = ObjectPart {
        part_number: Some(i32::from(stored.number)),
        size: Some(size(stored.range.end - stored.range.start)),
        ..ObjectPart::default()
    };
    set_checksum_fields!(part, stored.checksum.as_ref().filter(|_| tells_checksums));
    part
}

fn parts(
    object: &Object,
    (limit, after): (usize, u16),
    tells_checksums: bool,
) -> Option<GetObjectAttributesParts> {
    let all = object.parts();
    let total = i32::try_from(all.len()).ok().filter(|total| *total > 0)?;
    let rest = &all[all.partition_point(|part| part.number <= after)..];
    let shown = &rest[..rest.len().min(limit)];
    let last = shown.last().map_or(after, |part| part.number);
    // S3 lists the parts of an object only where they have checksums of their own.
    let listed = tells_checksums && shown.iter().any(|part| part.checksum.is_some());
    Some(GetObjectAttributesParts {
        is_truncated: Some(shown.len() < rest.len()),
        max_parts: i32::try_from(limit).ok(),
        next_part_number_marker: Some(i32::from(last)),
        part_number_marker: Some(i32::from(after)),
        parts: listed.then(|| shown.iter().map(|stored| part(stored, tells_checksums)).collect()),
        total_parts_count: Some(total),
    })
}

pub(super) async fn get(request: S3Request<GetObjectAttributesInput>) -> Answer<GetObjectAttributesOutput> {
    let (serving, admission) = admitted(&request).await?;
    let bucket = admission.bucket();
    let mut input = request.input;
    let version = version(input.version_id.as_deref())?;
    let limit = input.max_parts.map(usize::try_from).transpose().map_err(|_| invalid("max-parts"))?;
    let after = input.part_number_marker.map(u16::try_from).transpose();
    let after = after.map_err(|_| invalid("part-number-marker"))?.unwrap_or_default();
    let customer_key = key_of(asked_key!(input).as_ref());
    let key = input.key;
    let (object, tells_checksums) = serving
        .run(move |store| {
            let object = store.object(&bucket, &key, version).map_err(|error| from_store(&error))?;
            admission.check_object(object.info())?;
            object.info().check_key(customer_key.as_ref()).map_err(|error| from_store(&error))?;
            // They tell the clear bytes.
            let tells_checksums = object.check_named_key().is_ok();
            Ok((object, tells_checksums))
        })
        .await?;
    let info = object.info();
    let mut output = GetObjectAttributesOutput {
        last_modified: Some(timestamp(info.modified)),
        version_id: info.version.map(|version| version.to_string()),
        ..GetObjectAttributesOutput::default()
    };
    for wanted in asked(&input.object_attributes)? {
        match wanted {
            ObjectAttributes::ETAG => output.e_tag = Some(etag(&info.etag)),
            ObjectAttributes::CHECKSUM => {
                output.checksum = info.checksum.as_ref().filter(|_| tells_checksums).map(checksum);
            }
            ObjectAttributes::OBJECT_SIZE => output.object_size = Some(size(info.bytes)),
            ObjectAttributes::OBJECT_PARTS => {
                let limit = limit.unwrap_or(LIST_PAGE_MAX).min(LIST_PAGE_MAX);
                output.object_parts = parts(&object, (limit, after), tells_checksums);
            }
            _ => output.storage_class = Some(StorageClass::from_static(StorageClass::STANDARD)),
        }
    }
    Ok(S3Response::new(output))
}

/// The attributes that are asked for: at least one, each known.
fn asked(attributes: &[ObjectAttributes]) -> S3Result<Vec<&'static str>> {
    const KNOWN: [&str; 5] = [
        ObjectAttributes::ETAG,
        ObjectAttributes::CHECKSUM,
        ObjectAttributes::OBJECT_SIZE,
        ObjectAttributes::OBJECT_PARTS,
        ObjectAttributes::STORAGE_CLASS,
    ];
    let names = attributes.iter().flat_map(|attribute| attribute.as_str().split(',')).map(str::trim);
    let known = |name| KNOWN.into_iter().find(|known| *known == name);
    let asked: Option<Vec<_>> = names.map(known).collect();
    match asked {
        Some(asked) if !asked.is_empty() => Ok(asked),
        _ => Err(invalid("x-amz-object-attributes names an attribute that there is not, or none")),
    }
}
