//! The store under restarts, beside another process, and over a file that is not its own.

use std::os::unix::fs::MetadataExt;

use super::*;

fn pin(byte: u8) -> KeyPin {
    KeyPin::from_bytes([byte; 32])
}

#[tokio::test]
async fn private_and_versioned() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let mut change = store.begin().await.unwrap();
    change.put_device(&"laptop".parse().unwrap(), pin(1), 5).await.unwrap();
    change.commit().await.unwrap();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o600, "{entry:?}");
    }
    store.close().await;
    let store = Store::open(dir.path()).await.unwrap();
    assert_eq!(store.devices().await.unwrap()[0].pin, pin(1));
    sqlx::raw_sql("PRAGMA user_version = 99").execute(&store.pool).await.unwrap();
    store.close().await;
    assert!(matches!(Store::open(dir.path()).await, Err(StoreError::Newer { found: 99, .. })));
}

#[tokio::test]
async fn a_change_that_is_dropped_never_was() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let mut change = store.begin().await.unwrap();
    change.put_device(&"laptop".parse().unwrap(), pin(1), 5).await.unwrap();
    drop(change);
    assert!(store.devices().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_code_is_won_once_among_two_processes() {
    let dir = tempfile::tempdir().unwrap();
    let server = Store::open(dir.path()).await.unwrap();
    let command = Store::open(dir.path()).await.unwrap();
    let mut change = command.begin().await.unwrap();
    change.add_code([1; 32], "nxp", None, (0, 10), 0).await.unwrap();
    change.commit().await.unwrap();
    let win = |store: Store| async move {
        let mut change = store.begin().await.unwrap();
        let won = change.use_code([1; 32], "nxp", 5).await.unwrap().is_some();
        change.commit().await.unwrap();
        won
    };
    let mut tasks = tokio::task::JoinSet::new();
    for store in [&server, &command].into_iter().cycle().take(20) {
        tasks.spawn(win(store.clone()));
    }
    assert_eq!(tasks.join_all().await.into_iter().filter(|won| *won).count(), 1);
}

#[tokio::test]
async fn many_open_a_new_file_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let path = dir.path().to_owned();
        tasks.spawn(async move { Store::open(&path).await.unwrap() });
    }
    assert_eq!(tasks.join_all().await.len(), 6);
}

#[tokio::test]
async fn last_seen_is_noted_rarely() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let name = "laptop".parse().unwrap();
    let mut change = store.begin().await.unwrap();
    change.put_device(&name, pin(1), 5).await.unwrap();
    change.commit().await.unwrap();
    for (now, noted) in [(100, 100), (110, 100), (161, 161)] {
        store.saw_device(&name, now, now - 60).await.unwrap();
        assert_eq!(store.device(&name).await.unwrap().unwrap().last_seen, Some(noted));
    }
}

#[tokio::test]
async fn what_no_program_wrote_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    sqlx::raw_sql("INSERT INTO device (name, pin, created) VALUES ('laptop', 'x', 0)")
        .execute(&store.pool)
        .await
        .unwrap();
    assert!(matches!(store.devices().await, Err(StoreError::Corrupt("device pin"))));
}

#[tokio::test]
async fn a_disk_that_is_full_is_thought_of() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let mut change = store.begin().await.unwrap();
    sqlx::raw_sql("PRAGMA max_page_count = 1").execute(change.connection()).await.unwrap();
    let full = sqlx::raw_sql("CREATE TABLE more (blob BLOB)").execute(change.connection()).await.unwrap_err();
    let said = StoreError::from(full).to_string();
    assert!(said.starts_with("the database: ") && said.ends_with("hint: is the disk full?"), "{said}");
    let other = sqlx::raw_sql("no SQL").execute(change.connection()).await.unwrap_err();
    assert!(!StoreError::from(other).to_string().contains("hint:"));
}
