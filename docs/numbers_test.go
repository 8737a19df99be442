package docs_test

import (
	"fmt"
	"testing"
	"time"

	"example.com/keyring/internal/plan"
	"example.com/keyring/records"
	"github.com/hashicorp/raft"
)

// waits are the constants that say how long something takes, and what the pages say of it: of seconds, minutes, hours or days.
var waits = []struct {
	file, name string
	unit       time.Duration
	page, text string // with a verb for the number
}{
	{"config.go", "defaultEvery", 24 * time.Hour, "README.md", "A new key is made every %d days."},
	{"config.go", "defaultEvery", 24 * time.Hour, "docs/operations.md", "the default policies: rotation every %d days, a backup"},
	{"config.go", "defaultUndo", 24 * time.Hour, "docs/recovery.md", "`RotationPolicy.Undo` (%d days) is over"},
	{"schedule.go", "defaultBackupEvery", time.Hour, "docs/backup.md", "A backup is due `Every` (%d hours) after the last confirmed one."},
	{"schedule.go", "defaultBackupEvery", time.Hour, "docs/operations.md", "a backup every %d hours."},
	{"examples/controlplane/api.go", "maxTTL", time.Hour, "docs/tokens.md", "In the control plane `MaxTTL` is %d hour and"},
	{"config.go", "defaultLeeway", time.Minute, "docs/tokens.md", "and `Leeway` %d minute. No command"},
	{"port/calls.go", "callTimeout", time.Second, "docs/host.md", "A call without a deadline has %d seconds."},
	{"internal/plan/firstkey.go", "downPatience", time.Second, "docs/host.md", "delays the first key by %d seconds, and no longer"},
	{"internal/port/port.go", "recheckEvery", time.Second, "docs/members.md", "within %d seconds after the CAs no longer vouch"},
	{"node/leader.go", "leaderPatience", time.Second, "docs/members.md", "or %d seconds if it has no deadline."},
	{"internal/cluster/disk.go", "writePatience", time.Second, "docs/crash-safety.md", "A write that has not returned for %d seconds is reported"},
	{"internal/cluster/disk.go", "writePatience", time.Second, "docs/problems.md", "a write of the log has not returned for %d seconds, or a snapshot for a minute"},
	{"internal/durable/durable.go", "changePatience", time.Second, "docs/problems.md", "a write to their directory has not returned for %d seconds"},
	{"internal/kek/health.go", "timeout", time.Second, "docs/problems.md", "Calls to the KEK fail, or take longer than %d seconds."},
	{"admin/command.go", "statusTime", time.Second, "docs/operations.md", "The command ends within %d seconds"},
	{"hostcalls.go", "hostPatience", time.Second, "docs/transport.md", "with their contexts; %d seconds later `Status` names it."},
	{"hostcalls.go", "hostPatience", time.Second, "docs/problems.md", "the writer of a backup after %d seconds;"},
	{"hostcalls.go", "hostPatience", time.Second, "docs/problems.md", "for `Config.Transport` %d seconds after its deadline"},
	{"hostcalls.go", "scanPatience", time.Minute, "docs/problems.md", "for `Config.Data` after a minute, or %d minutes between two records of a scan"},
	{"internal/fsm/mux.go", "restorePatience", time.Minute, "docs/problems.md", "for Persist of the FSM beside the keyring's after %d minutes"},
	{"internal/fsm/mux.go", "restorePatience", time.Minute, "docs/problems.md", "its Snapshot after a minute and its Restore after %d minutes"},
	{"internal/fsm/mux.go", "applyPatience", time.Second, "docs/problems.md", "for that FSM's Apply after %d seconds"},
	{"internal/port/certificates.go", "tlsPatience", time.Second, "docs/problems.md", "for `Config.TLS` of a `Node` or a `port` after %d seconds"},
	{"problems_server.go", "firstBackupNotice", time.Minute, "docs/problems.md", "a notice when a key has been in use for %d minutes, and a warning after a day"},
	{"problems_server.go", "attemptsPatience", time.Minute, "docs/problems.md", "Or attempts have failed for %d minutes"},
}

// wordsOfWaits are those that pages have in words.
var wordsOfWaits = []struct {
	file, name string
	want       time.Duration
	page, text string
}{
	{"members.go", "defaultJoinTTL", time.Hour, "docs/members.md", "It is valid for an hour unless you say otherwise"},
	{"internal/port/claims.go", "claimLasts", 3 * time.Minute, "docs/problems.md", "three minutes after the last request of the other one"},
	{"internal/cluster/disk.go", "snapshotPatience", time.Minute, "docs/problems.md", "or a snapshot for a minute"},
	{"hostcalls.go", "dataPatience", time.Minute, "docs/problems.md", "for `Config.Data` after a minute"},
	{"hostcalls.go", "storePatience", time.Minute, "docs/problems.md", "for `Config.Backups.Store` after a minute"},
	{"internal/fsm/mux.go", "snapshotPatience", time.Minute, "docs/problems.md", "its Snapshot after a minute"},
	{"problems_server.go", "createPatience", time.Minute, "docs/problems.md", "the leader has failed to make it for a minute"},
	{"problems_server.go", "firstBackupWarning", 24 * time.Hour, "docs/problems.md", "and a warning after a day"},
}

// TestEachDocsWaitIsThatOfTheCode: how long the pages say that something takes, and how much there may be of it.
func TestEachDocsWaitIsThatOfTheCode(t *testing.T) {
	var rows []figure
	for _, w := range waits {
		rows = append(rows, figure{w.page, fmt.Sprintf(w.text, durationOf(t, w.file, w.name)/w.unit)})
	}
	for _, w := range wordsOfWaits {
		if is := durationOf(t, w.file, w.name); is != w.want {
			t.Errorf("%s of %s is %v, and %s says %q", w.name, w.file, is, w.page, w.text)
		}
		rows = append(rows, figure{w.page, w.text})
	}
	kept := constantOf(t, ".", "defaultBackupKeep")
	most := plan.BackupRetry(99, 24*time.Hour, 0)
	checkFigures(t, append(rows,
		figure{"README.md", map[time.Duration]string{time.Hour: "without a leader after an hour at most"}[plan.Stale]},
		figure{"docs/backup.md", map[time.Duration]string{time.Hour: "within a minute, and later within an hour."}[most]},
		figure{"docs/problems.md", map[time.Duration]string{time.Hour: "The leader tries again within an hour"}[most]},
		figure{"docs/backup.md", fmt.Sprintf("once a day, the last %d are kept", kept)},
		figure{"docs/backup.md", fmt.Sprintf("above `Keep` (%d).", kept)},
		figure{"docs/backup.md", fmt.Sprintf("each directory keeps %d.", kept)},
		figure{"docs/members.md", fmt.Sprintf("| refusals in the log | %d a second,", constantOf(t, "internal/peer", "tellEach"))},
		figure{"docs/problems.md", fmt.Sprintf("The JWKS has more than %d keys.", constantOf(t, ".", "maxJWKS"))},
		figure{"docs/operations.md", fmt.Sprintf("`keyring_jwks_keys > %d`", constantOf(t, ".", "maxJWKS"))},
		figure{"docs/records.md", fmt.Sprintf("A name has up to %d bytes, a record up to %d parts.", records.MaxName, records.MaxParts)},
		figure{"docs/records.md", fmt.Sprintf("%d,%03d by default", raft.DefaultConfig().TrailingLogs/1000, raft.DefaultConfig().TrailingLogs%1000)},
	))
	if first := plan.BackupRetry(0, 24*time.Hour, 0); first != time.Minute {
		t.Errorf("a backup is tried again after %v", first)
	}
}
