//! What the coordinator remembers, in one SQLite file that the server and its commands open at the same time.
//! It keeps facts and makes changes atomic; it decides nothing. Codes are stored hashed, keys as pins.
//!
//! Times are seconds since 1970. Every change that reads before it writes is one immediate transaction.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Row, Sqlite, Transaction};
use time::OffsetDateTime;

use crate::identity::KeyPin;
use crate::wire::name::{DeviceName, WorkspaceName};

use super::{authority_store, files};

/// The file in the data directory.
pub const FILE: &str = "coordinator.sqlite";

/// Connections of one process; SQLite writes one at a time whatever this is.
const CONNECTIONS: u32 = 4;

/// How long a writer waits for another. Longer than any transaction here by far.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// How often opening is tried: two processes that turn a new file to WAL can meet without waiting for each other.
const OPEN_ATTEMPTS: u32 = 20;

/// Between two attempts.
const OPEN_PAUSE: Duration = Duration::from_millis(50);

/// Rows in one listing.
pub(super) const MAX_ROWS: i64 = 10_000;

/// Each takes the file from the version of its index to the next. Never changed, only added to.
const MIGRATIONS: &[&str] = &[
    "
CREATE TABLE device (
    name TEXT NOT NULL PRIMARY KEY,
    pin TEXT NOT NULL UNIQUE,
    created INTEGER NOT NULL,
    last_seen INTEGER,
    revoked INTEGER
) STRICT;
CREATE TABLE workspace (
    name TEXT NOT NULL PRIMARY KEY,
    pin TEXT UNIQUE,
    created INTEGER NOT NULL,
    revoked INTEGER,
    trust_first_device INTEGER NOT NULL,
    device_pins TEXT NOT NULL
) STRICT;
CREATE TABLE code (
    hash BLOB NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    subject TEXT REFERENCES workspace(name),
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    used_at INTEGER
) STRICT;
CREATE INDEX code_subject ON code(subject);
",
    authority_store::MIGRATION,
];

/// Why the store did not answer. None of it is a peer's fault.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or the file.
    #[error("the data directory: {0}")]
    Io(#[from] std::io::Error),
    /// The database.
    #[error("the database: {0}{hint}", hint = disk_hint(.0))]
    Database(#[from] sqlx::Error),
    /// A newer program wrote the file.
    #[error("the database has version {found}; this program knows {known}. hint: update it")]
    Newer {
        /// Of the file.
        found: i64,
        /// The newest known.
        known: i64,
    },
    /// A row holds what no version of this program writes.
    #[error("the database holds a {0} that does not parse")]
    Corrupt(&'static str),
}

/// A device, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRecord {
    /// Its name.
    pub name: DeviceName,
    /// Its key.
    pub pin: KeyPin,
    /// When it was paired.
    pub created: i64,
    /// When it last dialled.
    pub last_seen: Option<i64>,
    /// When it was revoked.
    pub revoked: Option<i64>,
}

/// A workspace, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkspaceRecord {
    /// Its name.
    pub name: WorkspaceName,
    /// Its key, once it is enrolled.
    pub pin: Option<KeyPin>,
    /// When it was added.
    pub created: i64,
    /// When it was removed.
    pub revoked: Option<i64>,
    /// Whether it may admit the first device that comes.
    pub trust_first_device: bool,
    /// The devices it was told to admit: at its creation those known then, afterwards those of its last enrolment.
    pub device_pins: Vec<KeyPin>,
}

/// What a code is for and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeRecord {
    /// The workspace of an enrolment code.
    pub subject: Option<WorkspaceName>,
    /// From when on it is refused.
    pub expires: i64,
    /// When it was used.
    pub used_at: Option<i64>,
}

/// A time as the records have it, in seconds since 1970.
pub fn moment(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// Changes whenever a member may have been lost: revoked devices, removed workspaces, codes used (an enrolment replaces a
/// key); and with each step of a rotation of authorities. Counts, because all of it is decided in other processes too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Revision {
    devices: i64,
    workspaces: i64,
    codes: i64,
    /// Steps of rotations.
    pub authorities: i64,
}

/// The open file. Clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    pub(super) pool: SqlitePool,
    dir: PathBuf,
}

impl Store {
    /// Opens the file in `dir`, making both for their owner alone, and brings it to the newest version.
    pub async fn open(dir: &Path) -> Result<Store, StoreError> {
        files::prepare_data_dir(dir)?;
        let path = dir.join(FILE);
        // SQLite gives its companion files the mode of this one.
        drop(files::open_private(&path)?);
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .busy_timeout(BUSY_TIMEOUT)
            .journal_mode(SqliteJournalMode::Wal)
            // A used code must stay used through a power cut.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true);
        let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS).connect_lazy_with(options);
        let store = Store { pool, dir: dir.to_owned() };
        let mut attempt = 1;
        loop {
            match store.migrate().await {
                Err(StoreError::Database(error)) if attempt < OPEN_ATTEMPTS && is_busy(&error) => {
                    attempt += 1;
                    tokio::time::sleep(OPEN_PAUSE).await;
                }
                Err(error) => return Err(error),
                Ok(()) => return Ok(store),
            }
        }
    }

    /// The directory that the file is in.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits for what is running and closes the file.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        let found: i64 = sqlx::query("PRAGMA user_version").fetch_one(change.connection()).await?.try_get(0)?;
        let known = MIGRATIONS.len() as i64;
        let Some(todo) = usize::try_from(found).ok().and_then(|found| MIGRATIONS.get(found..)) else {
            return Err(StoreError::Newer { found, known });
        };
        for migration in todo {
            sqlx::raw_sql(*migration).execute(change.connection()).await?;
        }
        if !todo.is_empty() {
            let version = format!("PRAGMA user_version = {known}");
            sqlx::raw_sql(sqlx::AssertSqlSafe(version)).execute(change.connection()).await?;
        }
        change.commit().await
    }

    /// Begins a change. Whoever holds one is the only writer; dropped without commit, nothing happened.
    pub async fn begin(&self) -> Result<Change, StoreError> {
        Ok(Change(self.pool.begin_with("BEGIN IMMEDIATE").await?))
    }

    /// Where decisions about members stand now.
    pub async fn revision(&self) -> Result<Revision, StoreError> {
        let sql = "SELECT (SELECT count(*) FROM device WHERE revoked IS NOT NULL),
                          (SELECT count(*) FROM workspace WHERE revoked IS NOT NULL),
                          (SELECT count(*) FROM code WHERE used_at IS NOT NULL),
                          (SELECT count(*) + count(signs) + count(retired) FROM authority)";
        let (devices, workspaces, codes, authorities) = sqlx::query_as(sql).fetch_one(&self.pool).await?;
        Ok(Revision { devices, workspaces, codes, authorities })
    }

    /// Every device, revoked ones too, by name.
    pub async fn devices(&self) -> Result<Vec<DeviceRecord>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM device ORDER BY name LIMIT ?").bind(MAX_ROWS).fetch_all(&self.pool).await?;
        rows.iter().map(device).collect()
    }

    /// Every workspace that was not removed, by name.
    pub async fn workspaces(&self) -> Result<Vec<WorkspaceRecord>, StoreError> {
        let sql = "SELECT * FROM workspace WHERE revoked IS NULL ORDER BY name LIMIT ?";
        let rows = sqlx::query(sql).bind(MAX_ROWS).fetch_all(&self.pool).await?;
        rows.iter().map(workspace).collect()
    }

    /// A device.
    pub async fn device(&self, name: &DeviceName) -> Result<Option<DeviceRecord>, StoreError> {
        let sql = "SELECT * FROM device WHERE name = ?";
        sqlx::query(sql).bind(name.as_str()).fetch_optional(&self.pool).await?.as_ref().map(device).transpose()
    }

    /// A workspace, also if it was removed.
    pub async fn workspace(&self, name: &WorkspaceName) -> Result<Option<WorkspaceRecord>, StoreError> {
        let sql = "SELECT * FROM workspace WHERE name = ?";
        sqlx::query(sql).bind(name.as_str()).fetch_optional(&self.pool).await?.as_ref().map(workspace).transpose()
    }

    /// The device with this key.
    pub async fn device_by_pin(&self, pin: KeyPin) -> Result<Option<DeviceRecord>, StoreError> {
        device_by_pin(&mut *self.pool.acquire().await?, pin).await
    }

    /// The workspace with this key.
    pub async fn workspace_by_pin(&self, pin: KeyPin) -> Result<Option<WorkspaceRecord>, StoreError> {
        workspace_by_pin(&mut *self.pool.acquire().await?, pin).await
    }

    /// Notes that a device dialled, unless that was noted after `not_since`.
    pub async fn saw_device(&self, name: &DeviceName, now: i64, not_since: i64) -> Result<(), StoreError> {
        let sql = "UPDATE device SET last_seen = ? WHERE name = ? AND (last_seen IS NULL OR last_seen < ?)";
        sqlx::query(sql).bind(now).bind(name.as_str()).bind(not_since).execute(&self.pool).await?;
        Ok(())
    }
}

/// A change in progress.
#[derive(Debug)]
pub struct Change(Transaction<'static, Sqlite>);

impl Change {
    /// Makes it so.
    pub async fn commit(self) -> Result<(), StoreError> {
        Ok(self.0.commit().await?)
    }

    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.0
    }

    /// Stores a code, and forgets those that ended before `forget`.
    pub async fn add_code(
        &mut self,
        hash: [u8; 32],
        kind: &str,
        subject: Option<&WorkspaceName>,
        (now, expires): (i64, i64),
        forget: i64,
    ) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM code WHERE expires < ?").bind(forget).execute(self.connection()).await?;
        sqlx::query("INSERT INTO code (hash, kind, subject, created, expires) VALUES (?, ?, ?, ?, ?)")
            .bind(&hash[..])
            .bind(kind)
            .bind(subject.map(WorkspaceName::as_str))
            .bind(now)
            .bind(expires)
            .execute(self.connection())
            .await?;
        Ok(())
    }

    /// Uses a code: `Some` for the one caller that wins it, with the workspace it is for.
    pub async fn use_code(&mut self, hash: [u8; 32], kind: &str, now: i64) -> Result<Option<CodeRecord>, StoreError> {
        let sql = "UPDATE code SET used_at = ? WHERE hash = ? AND kind = ? AND used_at IS NULL AND expires > ?
                   RETURNING subject, expires, used_at";
        let query = sqlx::query(sql).bind(now).bind(&hash[..]).bind(kind).bind(now);
        query.fetch_optional(self.connection()).await?.as_ref().map(code).transpose()
    }

    /// What is known of a code.
    pub async fn code(&mut self, hash: [u8; 32], kind: &str) -> Result<Option<CodeRecord>, StoreError> {
        let sql = "SELECT subject, expires, used_at FROM code WHERE hash = ? AND kind = ?";
        let query = sqlx::query(sql).bind(&hash[..]).bind(kind);
        query.fetch_optional(self.connection()).await?.as_ref().map(code).transpose()
    }

    /// Forgets the unused codes of a workspace.
    pub async fn drop_codes(&mut self, name: &WorkspaceName) -> Result<(), StoreError> {
        let sql = "DELETE FROM code WHERE subject = ? AND used_at IS NULL";
        sqlx::query(sql).bind(name.as_str()).execute(self.connection()).await?;
        Ok(())
    }

    /// A device.
    pub async fn device(&mut self, name: &DeviceName) -> Result<Option<DeviceRecord>, StoreError> {
        let sql = "SELECT * FROM device WHERE name = ?";
        let query = sqlx::query(sql).bind(name.as_str());
        query.fetch_optional(self.connection()).await?.as_ref().map(device).transpose()
    }

    /// The device with this key.
    pub async fn device_by_pin(&mut self, pin: KeyPin) -> Result<Option<DeviceRecord>, StoreError> {
        device_by_pin(self.connection(), pin).await
    }

    /// The workspace with this key.
    pub async fn workspace_by_pin(&mut self, pin: KeyPin) -> Result<Option<WorkspaceRecord>, StoreError> {
        workspace_by_pin(self.connection(), pin).await
    }

    /// A workspace, also if it was removed.
    pub async fn workspace(&mut self, name: &WorkspaceName) -> Result<Option<WorkspaceRecord>, StoreError> {
        let sql = "SELECT * FROM workspace WHERE name = ?";
        let query = sqlx::query(sql).bind(name.as_str());
        query.fetch_optional(self.connection()).await?.as_ref().map(workspace).transpose()
    }

    /// The keys of all devices that are not revoked, oldest first.
    pub async fn device_pins(&mut self) -> Result<Vec<KeyPin>, StoreError> {
        let sql = "SELECT pin FROM device WHERE revoked IS NULL ORDER BY created, name LIMIT ?";
        let rows = sqlx::query(sql).bind(MAX_ROWS).fetch_all(self.connection()).await?;
        rows.iter().map(|row| parse(row.try_get("pin")?, "device pin")).collect()
    }

    /// Stores a device under its name, instead of one of that name.
    pub async fn put_device(&mut self, name: &DeviceName, pin: KeyPin, now: i64) -> Result<(), StoreError> {
        let sql = "INSERT INTO device (name, pin, created) VALUES (?, ?, ?)
                   ON CONFLICT (name) DO UPDATE
                   SET pin = excluded.pin, created = excluded.created, last_seen = NULL, revoked = NULL";
        sqlx::query(sql).bind(name.as_str()).bind(pin.to_string()).bind(now).execute(self.connection()).await?;
        Ok(())
    }

    /// Revokes a device; `false` when there is none of that name that is not revoked.
    pub async fn revoke_device(&mut self, name: &DeviceName, now: i64) -> Result<bool, StoreError> {
        let sql = "UPDATE device SET revoked = ? WHERE name = ? AND revoked IS NULL";
        let done = sqlx::query(sql).bind(now).bind(name.as_str()).execute(self.connection()).await?;
        Ok(done.rows_affected() == 1)
    }

    /// Stores a workspace without a key, instead of one of that name.
    pub async fn put_workspace(&mut self, record: &WorkspaceRecord) -> Result<(), StoreError> {
        let sql = "INSERT INTO workspace (name, pin, created, revoked, trust_first_device, device_pins)
                   VALUES (?, NULL, ?, NULL, ?, ?)
                   ON CONFLICT (name) DO UPDATE
                   SET pin = NULL, created = excluded.created, revoked = NULL,
                       trust_first_device = excluded.trust_first_device, device_pins = excluded.device_pins";
        sqlx::query(sql)
            .bind(record.name.as_str())
            .bind(record.created)
            .bind(record.trust_first_device)
            .bind(pins_text(&record.device_pins))
            .execute(self.connection())
            .await?;
        Ok(())
    }

    /// Sets whether a workspace may admit the first device that comes.
    pub async fn set_trust_first_device(&mut self, name: &WorkspaceName, trust: bool) -> Result<(), StoreError> {
        let sql = "UPDATE workspace SET trust_first_device = ? WHERE name = ?";
        sqlx::query(sql).bind(trust).bind(name.as_str()).execute(self.connection()).await?;
        Ok(())
    }

    /// Gives a workspace its key and the devices it admits.
    pub async fn enroll_workspace(
        &mut self,
        name: &WorkspaceName,
        pin: KeyPin,
        device_pins: &[KeyPin],
    ) -> Result<(), StoreError> {
        sqlx::query("UPDATE workspace SET pin = ?, device_pins = ? WHERE name = ?")
            .bind(pin.to_string())
            .bind(pins_text(device_pins))
            .bind(name.as_str())
            .execute(self.connection())
            .await?;
        Ok(())
    }

    /// Removes a workspace; `false` when there is none of that name that is not removed.
    pub async fn revoke_workspace(&mut self, name: &WorkspaceName, now: i64) -> Result<bool, StoreError> {
        let sql = "UPDATE workspace SET revoked = ? WHERE name = ? AND revoked IS NULL";
        let done = sqlx::query(sql).bind(now).bind(name.as_str()).execute(self.connection()).await?;
        Ok(done.rows_affected() == 1)
    }
}

async fn device_by_pin(connection: &mut SqliteConnection, pin: KeyPin) -> Result<Option<DeviceRecord>, StoreError> {
    let query = sqlx::query("SELECT * FROM device WHERE pin = ?").bind(pin.to_string());
    query.fetch_optional(connection).await?.as_ref().map(device).transpose()
}

async fn workspace_by_pin(
    connection: &mut SqliteConnection,
    pin: KeyPin,
) -> Result<Option<WorkspaceRecord>, StoreError> {
    let query = sqlx::query("SELECT * FROM workspace WHERE pin = ?").bind(pin.to_string());
    query.fetch_optional(connection).await?.as_ref().map(workspace).transpose()
}

fn device(row: &SqliteRow) -> Result<DeviceRecord, StoreError> {
    Ok(DeviceRecord {
        name: parse(row.try_get("name")?, "device name")?,
        pin: parse(row.try_get("pin")?, "device pin")?,
        created: row.try_get("created")?,
        last_seen: row.try_get("last_seen")?,
        revoked: row.try_get("revoked")?,
    })
}

fn workspace(row: &SqliteRow) -> Result<WorkspaceRecord, StoreError> {
    let pin: Option<&str> = row.try_get("pin")?;
    let pins: &str = row.try_get("device_pins")?;
    Ok(WorkspaceRecord {
        name: parse(row.try_get("name")?, "workspace name")?,
        pin: pin.map(|pin| parse(pin, "workspace pin")).transpose()?,
        created: row.try_get("created")?,
        revoked: row.try_get("revoked")?,
        trust_first_device: row.try_get("trust_first_device")?,
        device_pins: pins.split_whitespace().map(|pin| parse(pin, "device pin")).collect::<Result<_, _>>()?,
    })
}

fn code(row: &SqliteRow) -> Result<CodeRecord, StoreError> {
    let subject: Option<&str> = row.try_get("subject")?;
    Ok(CodeRecord {
        subject: subject.map(|name| parse(name, "workspace name")).transpose()?,
        expires: row.try_get("expires")?,
        used_at: row.try_get("used_at")?,
    })
}

pub(super) fn parse<T: FromStr>(text: &str, what: &'static str) -> Result<T, StoreError> {
    text.parse().map_err(|_| StoreError::Corrupt(what))
}

/// Pins in one column, with spaces between them.
fn pins_text(pins: &[KeyPin]) -> String {
    pins.iter().map(KeyPin::to_string).collect::<Vec<_>>().join(" ")
}

/// SQLITE_BUSY and SQLITE_LOCKED.
fn is_busy(error: &sqlx::Error) -> bool {
    matches!(sqlite_code(error), Some(5 | 6))
}

/// For SQLITE_IOERR and SQLITE_FULL.
fn disk_hint(error: &sqlx::Error) -> &'static str {
    if matches!(sqlite_code(error), Some(10 | 13)) { ". hint: is the disk full?" } else { "" }
}

/// What SQLite says, without what it adds to that: the low byte.
fn sqlite_code(error: &sqlx::Error) -> Option<u32> {
    error.as_database_error().and_then(|error| error.code()?.parse::<u32>().ok()).map(|code| code & 0xff)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
