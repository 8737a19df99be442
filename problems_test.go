package keyring

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// goodOverview is that of a leader of three servers with one key, at which nothing is wrong.
func goodOverview() overview {
	now, at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), mono.Now()
	id, server := KeyID{15: 1}, meta.Server{ID: "s1", Keystore: meta.KeystoreID{1}}
	key := meta.NewKey{ID: meta.KeyID(id), Algorithm: "EdDSA", Public: []byte{1}, Check: meta.CheckValue{1}, Created: now}
	ring, err := new(meta.Ring).Apply(5, []meta.Command{
		{Init: &meta.Init{Cluster: meta.ClusterID{1}}},
		{Add: &meta.Add{Key: key}},
		{Hold: &meta.Hold{Server: server.ID, Keystore: server.Keystore, Gained: []meta.KeyID{meta.KeyID(id)}}},
		{Activate: &meta.Activate{ID: meta.KeyID(id), Voters: []string{"s1"}, Confirmed: []meta.Server{server}, Time: now}},
	})
	if err != nil {
		panic(err)
	}
	o := overview{
		View: local.View{CaughtUp: true, Ring: ring},
		now:  now, at: at, id: "s1", leader: "s1",
		servers:  []raft.Server{{ID: "s1"}, {ID: "s2"}, {ID: "s3"}},
		raft:     raftStatus{behind: errors.New("of no meaning here"), lastIndex: 5, lastContact: now, patience: 10 * time.Second},
		clocks:   local.ClocksStatus{Known: plan.NewClocks(nil, time.Minute), RingClock: plan.RingClock{Now: now, Mono: at, Leeway: time.Minute}},
		watch:    local.WatchStatus{Active: meta.KeyID(id)},
		keystore: keystore.Report{Files: []meta.KeyID{meta.KeyID(id)}},
		keks:     []KEKStatus{{ID: "kms"}},
	}
	o.Ring.Backup.Index = 5
	return o
}

// problemCases are overviews at which one thing is wrong, with what Status says of it.
var problemCases = []struct {
	name   string
	wrong  func(o *overview)
	kind   ProblemKind
	key    KeyID
	server raft.ServerID
	kek    string
	also   raft.ServerID // of a second problem of the kind
}{
	{name: "raft feeds another FSM", wrong: func(o *overview) { o.raft.unfed = errors.New("x") }, kind: ProblemNotApplied},
	{name: "a newer entry", wrong: func(o *overview) { o.raft.incomplete = errors.New("x") }, kind: ProblemNewer},
	{name: "silence", wrong: func(o *overview) { o.raft.silence = 11 * time.Second }, kind: ProblemNoLeader},
	{name: "another server of its ID", wrong: func(o *overview) {
		o.raft.silence, o.host = 11*time.Second, []Problem{{Kind: ProblemIDTwice, Detail: "x"}}
	}, kind: ProblemIDTwice},
	{name: "two servers of one ID", wrong: func(o *overview) { o.host = []Problem{{Kind: ProblemIDTwice, Server: "s2", Detail: "x"}} }, kind: ProblemIDTwice, server: "s2"},
	{name: "just started", wrong: func(o *overview) { o.CaughtUp = false }, kind: ProblemBehind},
	{name: "left", wrong: func(o *overview) { o.id, o.leader = "s4", "s1" }, kind: ProblemRemoved},
	{name: "raft's disk", wrong: func(o *overview) { o.host = []Problem{{Kind: ProblemRaftDisk, Detail: "x"}} }, kind: ProblemRaftDisk},
	{name: "a log behind the keyring", wrong: func(o *overview) { o.raft.lastIndex = 4 }, kind: ProblemBackup},
	{name: "a host's FSM that hangs", wrong: func(o *overview) { o.appCalls = map[string]time.Time{"Apply of the host's FSM": o.now} }, kind: ProblemHost},
	{name: "an audit that hangs", wrong: func(o *overview) { o.hostCalls = map[string]time.Time{"Config.Audit": o.now} }, kind: ProblemHost},
	{name: "restored", wrong: func(o *overview) { o.waits.Unconfirmed = errors.New("x") }, kind: ProblemUnconfirmed, key: KeyID{15: 1}},
	{name: "a key is missing", wrong: missing, kind: ProblemKeyMissing, key: KeyID{15: 1}},
	{name: "a bad file", wrong: withFault(keystore.Fault{Cause: keystore.BadFile}), kind: ProblemKeyMissing, key: KeyID{15: 1}},
	{name: "a file of a KEK that is away", wrong: withFault(keystore.Fault{Cause: keystore.Locked, KEK: "kms"}), kind: ProblemKEKAway, key: KeyID{15: 1}, kek: "kms"},
	{name: "a file of a KEK that is not configured", wrong: withFault(keystore.Fault{Cause: keystore.Locked, KEK: "other", State: kek.Unconfigured}), kind: ProblemKEKUnconfigured, key: KeyID{15: 1}, kek: "other"},
	{name: "a file of another KEK", wrong: withFault(keystore.Fault{Cause: keystore.Locked, KEK: "kms", State: kek.Wrong}), kind: ProblemKEKOther, key: KeyID{15: 1}, kek: "kms"},
	{name: "a file of a newer build", wrong: withFault(keystore.Fault{Cause: keystore.Newer}), kind: ProblemNewer, key: KeyID{15: 1}},
	{name: "a file that can't be written", wrong: withFault(keystore.Fault{Cause: keystore.Unwritten}), kind: ProblemWrite, key: KeyID{15: 1}},
	{name: "a file of another user", wrong: withFault(keystore.Fault{Cause: keystore.Barred, Err: &durable.OwnerError{Have: 1000, Want: 0}}), kind: ProblemFileOwner, key: KeyID{15: 1}},
	{name: "a file without permission", wrong: withFault(keystore.Fault{Cause: keystore.Barred, Err: fs.ErrPermission}), kind: ProblemFileMode, key: KeyID{15: 1}},
	{name: "a directory moved away", wrong: func(o *overview) { o.keystore.Moved = durable.ErrMoved }, kind: ProblemMoved},
	{name: "another keystore", wrong: func(o *overview) { o.fetching.Replaced = 1 }, kind: ProblemKeystore},
	{name: "a symlink", wrong: withFault(keystore.Fault{Cause: keystore.Barred, Err: durable.ErrNotRegular}), kind: ProblemNotAFile, key: KeyID{15: 1}},
	{name: "a file of Nomad's", wrong: withFault(keystore.Fault{Cause: keystore.NomadFile, File: "x"}), kind: ProblemNomad, key: KeyID{15: 1}},
	{name: "a removed key in a file of Nomad's", wrong: func(o *overview) {
		o.Ring.Removed = []meta.Tombstone{{ID: meta.KeyID{15: 2}}}
		o.keystore.Nomad = []keystore.KeyFiles{{Key: meta.KeyID{15: 1}, Names: []string{"x"}}, {Key: meta.KeyID{15: 2}, Names: []string{"y"}}}
	}, kind: ProblemNomad, key: KeyID{15: 2}},
	{name: "a file that was altered", wrong: func(o *overview) {
		o.keystore.Altered = []keystore.Altered{{Key: meta.KeyID{15: 1}, Copy: "x", KEKs: []string{"y"}}}
	}, kind: ProblemAltered, key: KeyID{15: 1}},
	{name: "a file that is still to be opened", wrong: withFault(keystore.Fault{Cause: keystore.Unopened}), kind: ProblemOpening, key: KeyID{15: 1}},
	{name: "a file that was set aside", wrong: func(o *overview) { o.keystore.SetAside = []string{"x"} }, kind: ProblemSetAside},
	{name: "an orphan", wrong: func(o *overview) {
		o.keystore.Files = []meta.KeyID{{15: 1}, {15: 3}, {15: 4}}
		o.keystore.Written = map[meta.KeyID]mono.Time{{15: 3}: o.at.Add(-6 * time.Second), {15: 4}: o.at.Add(-4 * time.Second)}
	}, kind: ProblemOrphan, key: KeyID{15: 3}},
	{name: "an orphan that anybody may have made", wrong: func(o *overview) {
		o.keystore.Files, o.keystore.Unproven = []meta.KeyID{{15: 1}, {15: 3}}, []meta.KeyID{{15: 3}}
	}, kind: ProblemOrphan, key: KeyID{15: 3}},
	{name: "an orphan aside", wrong: func(o *overview) {
		o.keystore.Aside = []keystore.KeyFiles{{Key: meta.KeyID{15: 3}, Names: []string{"x"}}}
	}, kind: ProblemOrphan, key: KeyID{15: 3}},
	{name: "old KEKs", wrong: func(o *overview) { o.keystore.ToRewrap = 1 }, kind: ProblemOldKEK},
	{name: "old KEKs, and a disk that is full", wrong: func(o *overview) {
		o.keystore.ToRewrap = 1
		withFault(keystore.Fault{Cause: keystore.Unwritten})(o)
	}, kind: ProblemWrite, key: KeyID{15: 1}},
	{name: "old KEKs, and a KEK that does not wrap", wrong: func(o *overview) {
		o.keystore.ToRewrap, o.keks[0].Away = 1, "x"
	}, kind: ProblemKEKAway, kek: "kms"},
	{name: "a KEK is away", wrong: func(o *overview) { o.keks[0].Away = "x" }, kind: ProblemKEKAway, kek: "kms"},
	{name: "everybody reads the file of a KEK", wrong: func(o *overview) { o.keks[0].Warning = "x" }, kind: ProblemKEKFile, kek: "kms"},
	{name: "a KEK refuses", wrong: withKEK(KEKRefuses), kind: ProblemKEKRefuses, kek: "kms"},
	{name: "a KEK is throttled", wrong: func(o *overview) {
		withFault(keystore.Fault{Cause: keystore.Locked, KEK: "kms", State: kek.Unavailable})(o) // when it was read
		withKEK(KEKThrottled)(o)
	}, kind: ProblemKEKThrottled, key: KeyID{15: 1}, kek: "kms"},
	{name: "inline", wrong: func(o *overview) { o.keks = []KEKStatus{{ID: kek.InlineID, Old: true}} }, kind: ProblemInlineKEK},
	{name: "files of an inline KEK that is not configured", wrong: func(o *overview) {
		withFault(keystore.Fault{Cause: keystore.Locked, KEK: kek.InlineID, State: kek.Unconfigured})(o)
		o.keks = append(o.keks, KEKStatus{ID: kek.InlineID, State: KEKUnconfigured, Away: "x"})
	}, kind: ProblemKEKUnconfigured, key: KeyID{15: 1}, kek: kek.InlineID},
	{name: "no key can be made", wrong: func(o *overview) {
		o.waits.Create = &local.Failure{Since: o.at.Add(-time.Minute), Err: fmt.Errorf("x: %w", &kek.Error{KEK: "kms", Err: errors.New("y")})}
	}, kind: ProblemNoNewKey, kek: "kms"},
	{name: "pending", wrong: func(o *overview) {
		o.Ring.Keys = append(o.Ring.Keys, &meta.Key{ID: meta.KeyID{15: 4}, State: meta.State(StatePrepublished)})
		o.waits.Pending = map[meta.KeyID]string{{15: 4}: "x", {15: 1}: "it is active", {15: 9}: "it was removed"}
	}, kind: ProblemKeyPending, key: KeyID{15: 4}},
	{name: "a command waits", wrong: func(o *overview) { o.waits.Command = map[raft.ServerID]string{"s2": "x", "s9": "it was removed"} }, kind: ProblemWaiting, server: "s2"},
	{name: "the first key waits", wrong: func(o *overview) { o.waits.FirstKey = map[raft.ServerID]string{"s2": "x", "s9": "it was removed"} }, kind: ProblemFirstKey, server: "s2"},
	{name: "no voter yet", wrong: func(o *overview) {
		o.servers = append(o.servers, raft.Server{ID: "s4", Suffrage: raft.Nonvoter})
		o.waits.Nonvoters = map[raft.ServerID]string{"s2": "it is one", "s4": "x", "s5": "it has gone"}
	}, kind: ProblemNonvoter, server: "s4"},
	{name: "a fetch has failed", wrong: func(o *overview) {
		o.fetching.Failures = map[string]local.Failure{"s2": {Err: errors.New("x"), Since: o.at.Add(-6 * time.Second)}, "s3": {Err: errors.New("x"), Since: o.at.Add(-4 * time.Second)}}
	}, kind: ProblemUnreachable, server: "s2"},
	{name: "a write to the keystore hangs", wrong: func(o *overview) { o.keystore.Hangs = o.now.Add(-time.Minute) }, kind: ProblemWrite},
	{name: "a wrong public key", wrong: func(o *overview) { o.wrongPublic = []meta.KeyID{{15: 1}} }, kind: ProblemPublicKey, key: KeyID{15: 1}},
	{name: "a copied keystore", wrong: withKeystores(1, 2, 1), kind: ProblemKeystoreCopied, also: "s3"},
	{name: "a clock", wrong: withClocks(map[string]time.Duration{"s2": time.Hour, "s3": 0}), kind: ProblemClock, server: "s2"},
	{name: "a certificate", wrong: func(o *overview) { o.refused = errors.New("x") }, kind: ProblemCertificate},
	{name: "another server's certificate", wrong: func(o *overview) {
		o.certificates = []Certificate{{"s2", false, o.now.Add(-time.Hour), o.now.Add(time.Minute)}, {"s3", false, o.now.Add(-time.Hour), o.now.Add(time.Hour)}}
	}, kind: ProblemCertificate, server: "s2"},
	{name: "a large JWKS", wrong: func(o *overview) {
		o.tokens = plan.Tokens{MaxTTL: time.Hour, Leeway: time.Minute}
		for i := range 40 { // of 32 the tokens verify
			retired := o.now.Add(-time.Hour)
			if i >= 8 {
				retired = o.now.Add(-2 * time.Hour)
			}
			if i < 32 {
				retired = o.now.Add(-time.Minute)
			}
			o.Ring.Keys = append(o.Ring.Keys, &meta.Key{ID: meta.KeyID{14: byte(i + 1)}, State: meta.State(StateInactive), Retired: retired, Activated: retired})
		}
	}, kind: ProblemJWKS},
	{name: "a policy", wrong: func(o *overview) {
		o.policies = map[string]string{"Tokens.MaxTTL": "24h0m0s", "Tokens.Issuer": "a"}
		o.clocks.Policies = map[string]map[string]string{"s2": {"Tokens.MaxTTL": "1h0m0s", "Tokens.Newer": "x"}, "s3": o.policies, "s9": {"Tokens.Issuer": "b"}}
	}, kind: ProblemPolicy, server: "s2"},
	{name: "the last backup lies ahead", wrong: func(o *overview) { o.Ring.Backup.Time = o.now.Add(time.Hour) }, kind: ProblemTime},
	{name: "an activation lies ahead", wrong: func(o *overview) { o.Ring.Keys[0].Activated = o.now.Add(time.Hour) }, kind: ProblemTime, key: KeyID{15: 1}},
	{name: "keys without a backup", wrong: func(o *overview) { o.Ring.Keys[0].CreateIndex = 6 }, kind: ProblemBackup},
	{name: "a backup by schedule is late", wrong: func(o *overview) {
		o.every, o.Ring.Backup = 24*time.Hour, meta.Backup{Index: 4, Time: o.now.Add(-31 * time.Hour)} // the key is newer
	}, kind: ProblemSchedule},
	{name: "the first backup by schedule is late", wrong: func(o *overview) {
		o.every, o.Ring.Backup, o.Ring.Keys[0].Activated = 24*time.Hour, meta.Backup{}, o.now.Add(-7*time.Hour)
	}, kind: ProblemSchedule},
	{name: "backups by schedule fail", wrong: func(o *overview) {
		o.every, o.Ring.Backup.Time = 24*time.Hour, o.now
		o.schedule.Attempts = &local.Failure{Err: errors.New("x"), Since: o.at.Add(-11 * time.Minute)}
	}, kind: ProblemSchedule},
	{name: "old backups stay", wrong: func(o *overview) {
		o.every, o.Ring.Backup.Time = 24*time.Hour, o.now
		o.schedule.Tidying = &local.Failure{Err: errors.New("x"), Since: o.at}
	}, kind: ProblemSchedule},
	{name: "a server does not answer raft", wrong: func(o *overview) {
		o.watch.Silent = map[string]local.Silence{"s2": {Since: o.at.Add(-6 * time.Second)}, "s3": {Since: o.at.Add(-4 * time.Second)}}
	}, kind: ProblemUnreachable, server: "s2"},
	{name: "a server gets no further", wrong: func(o *overview) {
		o.watch.Progress = map[string]plan.Progress{"s2": {Stuck: true}, "s3": {}}
	}, kind: ProblemStuck, server: "s2"},
	{name: "a server lacks the active key", wrong: func(o *overview) {
		long := o.at.Add(-6 * time.Second)
		o.watch.Lacks = map[string]mono.Time{"s2": long, "s3": o.at.Add(-4 * time.Second), "s1": long} // of itself s1 says why
	}, kind: ProblemUnderheld, key: KeyID{15: 1}, server: "s2"},
	{name: "a rekey is stuck", wrong: func(o *overview) { o.rekeying = []RekeyProgress{{Key: KeyID{15: 5}, Err: errors.New("x")}} }, kind: ProblemRekey, key: KeyID{15: 5}},
	{name: "records in the clear are stuck", wrong: func(o *overview) { o.rekeying = []RekeyProgress{{Err: errors.New("x")}} }, kind: ProblemRekey},
	{name: "a rekey without data", wrong: func(o *overview) { o.noData, o.rekeying = true, []RekeyProgress{{Key: KeyID{15: 5}}} }, kind: ProblemRekey, key: KeyID{15: 5}},
}

// missing has one key missing for long, and one that has just come.
func missing(o *overview) {
	o.Ring.Keys = append(o.Ring.Keys, &meta.Key{ID: meta.KeyID{15: 4}, State: meta.State(StateInactive)})
	o.keystore.Missing = []meta.KeyID{{15: 1}, {15: 4}}
	o.fetching.Lacking = map[meta.KeyID]mono.Time{{15: 1}: o.at.Add(-6 * time.Second), {15: 4}: o.at.Add(-4 * time.Second)}
}

func withFault(f keystore.Fault) func(*overview) {
	if f.Key = meta.KeyID((KeyID{15: 1})); f.Err == nil {
		f.Err = errors.New("x")
	}
	return func(o *overview) { o.keystore.Faults = []keystore.Fault{f} }
}

func withKEK(s KEKState) func(*overview) {
	return func(o *overview) { o.keks[0].State, o.keks[0].Away = s, "x" }
}

func withClocks(ahead map[string]time.Duration) func(*overview) {
	return func(o *overview) { o.clocks.Known = plan.NewClocks(ahead, time.Minute) }
}

// withKeystores has s1, s2 and so on report these keystores.
func withKeystores(keystores ...byte) func(*overview) {
	return func(o *overview) {
		o.Ring.Servers = nil
		for i, keystore := range keystores {
			o.Ring.Servers = append(o.Ring.Servers, meta.Server{ID: fmt.Sprintf("s%d", i+1), Keystore: meta.KeystoreID{keystore}})
		}
	}
}

// serversOf are the servers that problems are about, as a server tells of them.
func serversOf(all []Problem, by raft.ServerID) (ids []raft.ServerID) {
	for _, p := range all {
		ids = append(ids, cmp.Or(p.Server, by))
	}
	slices.Sort(ids)
	return ids
}

// TestACopiedKeystoreIsToldByTheLeaderAndItsServers: of members alone, and it names them.
func TestACopiedKeystoreIsToldByTheLeaderAndItsServers(t *testing.T) {
	for name, tt := range map[string]struct {
		id, leader raft.ServerID
		keystores  []byte
		want       string
	}{
		"the leader":               {"s1", "s1", []byte{1, 2, 2}, `["s2" "s3"]`}, // which is innocent
		"a server that has it":     {"s3", "s1", []byte{1, 2, 2}, `["s2" "s3"]`},
		"all three":                {"s3", "s1", []byte{2, 2, 2}, `["s1" "s2" "s3"]`},
		"another server":           {"s2", "s3", []byte{1, 2, 1}, ""},
		"one that was removed":     {"s1", "s1", []byte{1, 2, 3, 2}, ""},
		"servers that are silent":  {"s1", "s1", []byte{1}, ""},
		"each has one of its own":  {"s1", "s1", []byte{1, 2, 3}, ""},
		"one whose ring is of old": {"s1", "", []byte{1, 2, 1}, ""},
	} {
		o := goodOverview()
		o.id, o.leader, o.CaughtUp = tt.id, tt.leader, tt.leader != ""
		withKeystores(tt.keystores...)(&o)
		var got []Problem
		for _, p := range o.status().Problems {
			if p.Kind == ProblemKeystoreCopied {
				got = append(got, p)
			}
		}
		switch {
		case cmp.Or(tt.want, "[]") != fmt.Sprintf("%q", serversOf(got, tt.id)):
			t.Errorf("%s: %v", name, got)
		case tt.want != "" && (!strings.HasPrefix(got[0].Detail, tt.want) || got[0].Severity != SeverityCritical):
			t.Errorf("%s: %+v", name, got[0])
		}
	}
}

// TestEachThingThatIsWrongIsOneProblem, with advice; every kind of problem is among them.
func TestEachThingThatIsWrongIsOneProblem(t *testing.T) {
	if st := goodOverview().status(); len(st.Problems) > 0 || !st.Ready || st.Active != (KeyID{15: 1}) {
		t.Fatalf("nothing is wrong: %+v", st)
	}
	seen := map[ProblemKind]bool{}
	for _, tt := range problemCases {
		o := goodOverview()
		tt.wrong(&o)
		all := o.status().Problems
		if i := len(all) - 1; tt.also != "" && i > 0 && all[i].Kind == tt.kind && all[i].Server == tt.also {
			all = all[:i]
		}
		if len(all) != 1 {
			t.Errorf("%s: %d problems: %v", tt.name, len(all), all)
			continue
		}
		p := all[0]
		var keys []KeyID
		if tt.key != (KeyID{}) {
			keys = []KeyID{tt.key}
		}
		seen[p.Kind] = true
		if p.Kind != tt.kind || !slices.Equal(p.Keys, keys) || p.Server != tt.server || p.KEK != tt.kek || p.Advice == "" || p.Severity == "" || p.Since.IsZero() {
			t.Errorf("%s: %+v", tt.name, p)
		}
	}
	for _, k := range problemKinds {
		if !seen[k.kind] {
			t.Errorf("no overview has a problem of the kind %q", k.kind)
		}
	}
}

// TestWhatIsNotAboutFilesIsSaidWhereverTheDirectoryIs.
func TestWhatIsNotAboutFilesIsSaidWhereverTheDirectoryIs(t *testing.T) {
	o := goodOverview()
	o.keystore.Moved = durable.ErrMoved
	o.Ring.Keys = append(o.Ring.Keys, &meta.Key{ID: meta.KeyID{15: 4}, State: meta.State(StateInactive), Algorithm: "newer"})
	o.keks[0].Away = "x"
	var got []ProblemKind
	for _, p := range o.status().Problems {
		got = append(got, p.Kind)
	}
	if want := []ProblemKind{ProblemNewer, ProblemMoved, ProblemKEKAway}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestNoBackupIsAskedForThatCanNotBeMade.
func TestNoBackupIsAskedForThatCanNotBeMade(t *testing.T) {
	o := goodOverview()
	o.Ring.Keys[0].CreateIndex, o.raft.lastIndex = 6, 4
	if all := o.status().Problems; len(all) != 1 || all[0].Kind != ProblemBackup || !strings.Contains(all[0].Advice, "when raft's log has reached that index") {
		t.Errorf("%+v", all)
	}
}

// TestNoBackupAtAllIsAProblemOnceAKeyIsInUse for a while: a fresh cluster is well.
func TestNoBackupAtAllIsAProblemOnceAKeyIsInUse(t *testing.T) {
	for _, tt := range []struct {
		after time.Duration
		want  Severity
	}{
		{0, ""}, {10*time.Minute - 1, ""}, {10 * time.Minute, SeverityNotice}, {24*time.Hour - 1, SeverityNotice}, {24 * time.Hour, SeverityWarning}, {-time.Hour, ""},
	} {
		o := goodOverview()
		o.Ring.Backup = meta.Backup{}
		first := *o.Ring.Keys[0]
		for range 2 { // the second time it was adopted, in place of activated
			o.now = goodOverview().now.Add(tt.after)
			o.clocks.RingClock.Now = o.now.Add(24 * time.Hour) // a clock behind is another problem
			all := o.status().Problems
			if tt.want == "" && len(all) > 0 || tt.want != "" && (len(all) != 1 || all[0].Kind != ProblemBackup || all[0].Severity != tt.want ||
				!strings.Contains(all[0].Detail, "there is no backup: 1 key is in none") || !strings.Contains(all[0].Advice, "ConfirmBackup")) {
				t.Errorf("after %v: %v", tt.after, all)
			}
			second := first
			second.State, second.Retired, second.Activated = meta.State(StateInactive), first.Activated, time.Time{}
			o.Ring.Keys[0] = &second
			o.watch.Active = meta.KeyID{}
		}
	}
	o := goodOverview()
	key := *o.Ring.Keys[0]
	key.ID, key.CreateIndex = meta.KeyID{15: 2}, 6
	o.Ring.Keys, o.raft.lastIndex = append(o.Ring.Keys, &key), 6
	if all := o.status().Problems; !slices.ContainsFunc(all, func(p Problem) bool {
		return p.Kind == ProblemBackup && p.Severity == SeverityWarning && strings.HasPrefix(p.Detail, "1 key is newer than the last backup")
	}) {
		t.Errorf("a newer key: %v", all)
	}
}

// TestFailingKEKsAreThoseOfTheConfiguration, as the metric says.
func TestFailingKEKsAreThoseOfTheConfiguration(t *testing.T) {
	o := goodOverview()
	o.keks = append(o.keks, KEKStatus{ID: "old", Old: true, Away: "x"}, KEKStatus{ID: "none", State: KEKUnconfigured, Away: "x"})
	if n := o.failingKEKs(); n != 1 {
		t.Errorf("%d", n)
	}
}

// TestOnlyTheLeaderTellsOfOthers: what it knows is of no meaning when another one leads.
func TestOnlyTheLeaderTellsOfOthers(t *testing.T) {
	o := goodOverview()
	o.leader = "s2"
	o.waits.Unconfirmed = errors.New("x")
	o.rekeying, o.noData = []RekeyProgress{{Key: KeyID{15: 5}, Err: errors.New("x")}}, true
	o.watch.Silent = map[string]local.Silence{"s2": {Since: o.at.Add(-time.Hour)}}
	o.watch.Lacks = map[string]mono.Time{"s2": o.at.Add(-time.Hour)}
	if st := o.status(); len(st.Problems) > 0 || st.Rekeying != nil {
		t.Errorf("%+v", st)
	}
}

// TestNothingIsSaidOfFilesBeforeThisServerHasCaughtUp, but that it has not: the ring may be of before they were
// made.
func TestNothingIsSaidOfFilesBeforeThisServerHasCaughtUp(t *testing.T) {
	o := goodOverview()
	o.CaughtUp = false
	o.Ring.Removed = []meta.Tombstone{{ID: meta.KeyID{15: 2}}}
	o.Ring.Keys[0].CreateIndex = 6
	o.keystore = keystore.Report{
		Missing: []meta.KeyID{{15: 1}}, Files: []meta.KeyID{{15: 3}},
		Aside: []keystore.KeyFiles{{Key: meta.KeyID{15: 4}, Names: []string{"x"}}}, Nomad: []keystore.KeyFiles{{Key: meta.KeyID{15: 2}, Names: []string{"y"}}},
	}
	st := o.status()
	if len(st.Problems) != 1 || st.Problems[0].Kind != ProblemBehind || st.Orphans != nil || st.NoBackup != nil {
		t.Errorf("%+v", st)
	}
}

// TestProblemsAreSortedTheWorstFirst.
func TestProblemsAreSortedTheWorstFirst(t *testing.T) {
	o := goodOverview()
	for _, tt := range problemCases {
		if tt.name != "left" && tt.name != "just started" { // they leave others unsaid
			tt.wrong(&o)
		}
	}
	rank := func(a, b Problem) int {
		return cmp.Or(a.Severity.rank()-b.Severity.rank(), a.Kind.rank()-b.Kind.rank())
	}
	if all := o.status().Problems; len(all) < 20 || !slices.IsSortedFunc(all, rank) {
		t.Errorf("%v", all)
	}
}

// TestEveryProblemHasAdvice and a rank.
func TestEveryProblemHasAdvice(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "problems.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	kinds := 0
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(spec.Names[0].Name, "Problem") {
			return true
		}
		kind := ProblemKind(strings.Trim(spec.Values[0].(*ast.BasicLit).Value, `"`))
		if kind.advice() == "" {
			t.Errorf("%s has no advice", kind)
		}
		kinds++
		return true
	})
	if kinds < 13 {
		t.Errorf("only %d kinds found", kinds)
	}
}

// TestProblemIsOneCause: it has all the keys, the details that differ, the worst severity and the earliest moment.
func TestProblemIsOneCause(t *testing.T) {
	o := goodOverview()
	missing(&o)
	early, late := o.now.Add(-2*time.Hour), o.now.Add(-time.Hour)
	o.host = []Problem{
		{Kind: "paper", Keys: []KeyID{{15: 2}}, Detail: "a", Since: late, Severity: SeverityNotice},
		{Kind: "paper", Keys: []KeyID{{15: 1}, {15: 2}}, Detail: "b", Severity: SeverityCritical},
		{Kind: "paper", Detail: "a", Since: early},
		{Kind: "paper", Server: "s2", Detail: "a"},
	}
	o.since = map[cause]time.Time{{ProblemKeyMissing, "", ""}: late}
	want := []Problem{
		{Kind: ProblemKeyMissing, Severity: SeverityCritical, Since: late, Keys: []KeyID{{15: 1}}},
		{Kind: "paper", Severity: SeverityCritical, Since: early, Keys: []KeyID{{15: 1}, {15: 2}}, Detail: "a; b"},
		{Kind: "paper", Severity: SeverityWarning, Since: o.now, Server: "s2", Detail: "a"},
	}
	got := o.status().Problems
	if len(got) != len(want) {
		t.Fatalf("%d problems: %v", len(got), got)
	}
	for i, p := range got {
		p.Advice = ""
		if i == 0 {
			p.Detail = ""
		}
		if !reflect.DeepEqual(p, want[i]) {
			t.Errorf("got %+v, want %+v", p, want[i])
		}
	}
	if since := sinceOf(got); len(since) != 3 || since[cause{ProblemKeyMissing, "", ""}] != late {
		t.Errorf("seen since %v", since)
	}
}

// TestManyDetailsOfACauseAreCut, and all its keys are named.
func TestManyDetailsOfACauseAreCut(t *testing.T) {
	o := goodOverview()
	for i := range 10 {
		o.keystore.Faults = append(o.keystore.Faults, keystore.Fault{Key: meta.KeyID{15: byte(i)}, Cause: keystore.BadFile, Err: fmt.Errorf("file %d", i)})
	}
	p := o.status().Problems[0]
	if len(p.Keys) != 10 || !strings.HasSuffix(p.Detail, "file 4; and 5 more") || !strings.Contains(p.String(), "and 9 more") {
		t.Errorf("%s, %d keys", p, len(p.Keys))
	}
}

// TestProblemsOfAnOlderLeaderAreRead: it tells one a key, and no severity.
func TestProblemsOfAnOlderLeaderAreRead(t *testing.T) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	fmt.Fprintf(z, `{"problems":[{"kind":"KEK away","key":%q,"kek":"kms","detail":"x","advice":"y"},{"kind":"KEK away","key":%q,"kek":"kms","detail":"x","advice":"y"}]}`,
		KeyID{15: 1}, KeyID{15: 2})
	z.Close()
	st, err := unpackStatus(b.Bytes())
	want := []Problem{{Kind: ProblemKEKAway, Severity: SeverityWarning, KEK: "kms", Keys: []KeyID{{15: 1}, {15: 2}}, Detail: "x", Advice: "y"}}
	if err != nil || !reflect.DeepEqual(st.Problems, want) {
		t.Errorf("%+v, %v", st.Problems, err)
	}
}

// TestTimesForPeopleHaveAZone: who reads them is not where the server is.
func TestTimesForPeopleHaveAZone(t *testing.T) {
	noZone := regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?: UTC)?`)
	elsewhere := time.FixedZone("", 5*60*60)
	told := 0
	for _, tt := range problemCases {
		o := goodOverview()
		o.now = o.now.In(elsewhere)
		o.raft.lastContact = o.now
		o.Ring.Keys[0].Activated, o.Ring.Backup.Time = o.now, o.now
		tt.wrong(&o)
		for _, at := range noZone.FindAllString(o.status().String(), -1) {
			if told++; !strings.HasSuffix(at, " UTC") {
				t.Errorf("%s: %q in\n%s", tt.name, at, o.status())
			} else if strings.HasPrefix(at, o.now.Format(time.DateOnly+" 15")) {
				t.Errorf("%s: %q is not UTC", tt.name, at)
			}
		}
	}
	if told < len(problemCases) {
		t.Errorf("only %d times were told", told)
	}
}

// TestAdviceForAServerThatDoesNotAnswer covers a process that hangs: it runs, so to start it does nothing.
func TestAdviceForAServerThatDoesNotAnswer(t *testing.T) {
	if a := ProblemUnreachable.advice(); !strings.Contains(a, "kill -9") || !strings.Contains(a, "start it again") {
		t.Errorf("it is %q", a)
	}
}
