package scenarios_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// inUTC is how times are told to people.
const inUTC = time.DateTime + " UTC"

// TestStatusForPeople has all that Status has, on one page.
func TestStatusForPeople(t *testing.T) {
	day := func(n int) time.Time { return time.Date(2026, 1, n, 12, 0, 0, 0, time.UTC) }
	one, two := keyring.KeyID{15: 1}, keyring.KeyID{15: 2}
	st := keyring.Status{
		ID: "s2", Leader: "s1", Servers: []raft.Server{{ID: "s1"}, {ID: "s2"}, {ID: "s3", Suffrage: raft.Nonvoter}},
		Nonvoters: []raft.ServerID{"s3"},
		Keys: []keyring.Key{
			{ID: two, State: keyring.StateActive, Created: day(2), Activated: day(3), Holders: []raft.ServerID{"s1", "s2"}},
			{ID: one, State: keyring.StateRekeying, Created: day(1), Activated: day(1), Retired: day(3), Holders: []raft.ServerID{"s1", "s2", "s3"}},
		},
		Missing: []keyring.KeyID{one}, NextRotation: day(30),
		KEKs:     []keyring.KEKStatus{{ID: "file:1"}, {ID: "kms:2", Away: "timeout"}, {ID: "file:3", Old: true}},
		Rekeying: []keyring.RekeyProgress{{Key: one, Moved: 3, Conflicts: 1, Left: 2, Poisoned: 2, PoisonedRefs: []string{"a", "b"}}},
		Problems: []keyring.Problem{{Kind: keyring.ProblemKeyMissing, Severity: keyring.SeverityCritical, Keys: []keyring.KeyID{one}, Detail: "being fetched", Advice: "Nothing."}},
	}
	const want = `s2 has problems: 1 critical
critical: key missing 00000000-0000-0000-0000-000000000001: being fetched
    Nothing.
s2 follows s1, not ready
KEK file:1 wraps
KEK kms:2 does not answer
KEK file:3 is an old one
next rotation: 2026-01-30 12:00:00 UTC
last backup: none

KEY                                   STATE     SINCE                    s1    s2       s3 (non-voter)
00000000-0000-0000-0000-000000000002  active    2026-01-03 12:00:00 UTC  held  held     missing
00000000-0000-0000-0000-000000000001  rekeying  2026-01-03 12:00:00 UTC  held  missing  held

rekeying 00000000-0000-0000-0000-000000000001: 3 moved, 1 conflicts, 2 left, 2 that do not decrypt: ["a" "b"]
`
	if got := st.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	st.Problems[0].Severity = keyring.SeverityNotice
	if got := st.String(); !strings.HasPrefix(got, "s2 is well: 1 notice\nnotice: key missing") {
		t.Errorf("with a notice\n%s", got)
	}
	if st.Problems = nil; !strings.HasPrefix(st.String(), "s2 is well\ns2 follows") {
		t.Errorf("without problems\n%s", st)
	}
	st.Leader, st.Ready, st.NextRotation, st.LastBackup.Time = "s2", true, time.Time{}, day(4)
	for _, want := range []string{"s2 leads\n", "next rotation: by hand\n", "last backup: 2026-01-04 12:00:00 UTC\n"} {
		if got := st.String(); !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

// TestStatusForMachines is JSON that says the same as the struct, and says when the next key is due.
func TestStatusForMachines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const every = 1000 * time.Hour
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Pace: time.Hour, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Rotation.Every, cfg.Rotation.Lead = every, 100*time.Hour
		}})
		k := keyringtest.Ready(t, c).Keyring
		read := func() (st keyring.Status, text string) {
			st, err := k.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			b, err := json.Marshal(st)
			if err != nil {
				t.Fatal(err)
			}
			return st, string(b)
		}
		st, text := read()
		var got struct {
			ID, Leader, Active string
			Ready              bool
			NextRotation       time.Time
			Keys               []struct {
				ID, State string
				Holders   []string
			}
			KEKs     []struct{ ID string }
			Problems []struct{ Kind, Detail, Advice string }
		}
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Fatal(err)
		}
		if got.Active != st.Active.String() || got.Keys[0].ID != got.Active || got.Keys[0].State != "active" || !got.Ready ||
			got.Leader != string(st.Leader) || got.KEKs[0].ID != "inline" || got.Problems[0].Kind != "inline KEK" || got.Problems[0].Advice == "" {
			t.Errorf("%s", text)
		}
		due := st.Keys[0].Activated.Add(every)
		if !got.NextRotation.Equal(due) {
			t.Errorf("the next rotation is at %v, want %v", got.NextRotation, due)
		}
		time.Sleep(every - 50*time.Hour) // virtual: the next one is prepublished
		if st, _ := read(); st.Keys[0].State != keyring.StatePrepublished || st.NextRotation.Sub(due).Abs() > time.Hour {
			t.Errorf("%s is prepublished: the next rotation is at %v, want %v", st.Keys[0].State, st.NextRotation, due)
		}
		sooner := time.Now().Add(10 * time.Hour)
		if _, err := k.Rotate(t.Context(), keyring.RotateOptions{Publish: sooner}); err != nil {
			t.Fatal(err)
		}
		if st, _ := read(); !st.NextRotation.Equal(sooner) {
			t.Errorf("by hand, the next rotation is at %v, want %v", st.NextRotation, sooner)
		}
	})
}

// TestKeyMadeAtTheIndexOfABackupIsInIt.
func TestKeyMadeAtTheIndexOfABackupIsInIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1})
		s := keyringtest.Ready(t, c)
		at := s.Keyring.Keys()[0].CreateIndex
		for _, tt := range []struct {
			index uint64
			newer int
		}{{at - 1, 1}, {at, 0}} {
			backup := &meta.Backup{Index: tt.index, Time: time.Now().UTC(), Digest: meta.Digest{1}}
			if err := keyringtest.Propose(s.Raft, meta.Command{Backup: backup}); err != nil {
				t.Fatal(err)
			}
			if st, err := s.Keyring.Status(t.Context()); err != nil || len(st.NoBackup) != tt.newer {
				t.Errorf("the key is made at %d, the backup is of %d: %v have none, %v", at, tt.index, st.NoBackup, err)
			}
		}
	})
}

// TestLeaderNamesServersThatAreDownAndLackTheActiveKey, from when on, and no longer than they are.
func TestLeaderNamesServersThatAreDownAndLackTheActiveKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		dead := keyringtest.Follower(c)
		time.Sleep(time.Minute)
		if st := keyringtest.StatusOf(t, leader); len(st.Problems) != 1 { // the inline KEK
			t.Errorf("problems %v", st.Problems)
		}
		down := time.Now()
		c.Stop(dead)
		key := keyringtest.RotateWhenReady(t, c)
		time.Sleep(10 * time.Second)
		got := keyringtest.Problems(t, leader, keyring.ProblemUnreachable)
		if len(got) != 1 || got[0].Server != dead.ID {
			t.Fatalf("problems %v", keyringtest.StatusOf(t, leader).Problems)
		}
		said, err := time.Parse(inUTC, got[0].Detail[len(got[0].Detail)-len(inUTC):])
		if err != nil || said.Sub(down).Abs() > 2*time.Second {
			t.Errorf("%q, down since %v: %v", got[0].Detail, down, err)
		}
		under := keyringtest.Problems(t, leader, keyring.ProblemUnderheld)
		if len(under) != 1 || !slices.Equal(under[0].Keys, []keyring.KeyID{key.ID}) || under[0].Server != dead.ID {
			t.Errorf("problems %v", under)
		}
		c.Start(dead)
		keyringtest.Ready(t, c)
		time.Sleep(20 * time.Second)
		if st := keyringtest.StatusOf(t, leader); len(st.Problems) != 1 {
			t.Errorf("problems %v", st.Problems)
		}
	})
}

// TestNewLeaderNamesServersThatWereDownBefore: it has never heard from them.
func TestNewLeaderNamesServersThatWereDownBefore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		keyringtest.Ready(t, c)
		keyringtest.MakeLeader(t, c, c.Server("s1"))
		c.Stop(c.Server("s3"))
		keyringtest.MakeLeader(t, c, c.Server("s2"))
		time.Sleep(10 * time.Second)
		if got := keyringtest.Problems(t, c.Server("s2"), keyring.ProblemUnreachable); len(got) != 1 || got[0].Server != "s3" {
			t.Errorf("problems %v", got)
		}
		if got := keyringtest.Problems(t, c.Server("s1"), keyring.ProblemUnreachable); len(got) != 0 {
			t.Errorf("a server that leads no more: %v", got)
		}
	})
}

// TestServerThatHearsFromNoLeaderSaysSo, and since when.
func TestServerThatHearsFromNoLeaderSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		s := keyringtest.Follower(c)
		lost := time.Now()
		for _, other := range c.Servers {
			if other != s {
				c.Stop(other)
			}
		}
		time.Sleep(15 * time.Second)
		got := keyringtest.Problems(t, s, keyring.ProblemNoLeader)
		if len(got) != 1 || !strings.Contains(got[0].Detail, keyringtest.StatusOf(t, s).LastContact.UTC().Format(inUTC)) {
			t.Errorf("problems %v", got)
		}
		if at := keyringtest.StatusOf(t, s).LastContact; at.Sub(lost).Abs() > time.Second {
			t.Errorf("last contact %v, and the others were stopped at %v", at, lost)
		}
		c.Start(leader)
		keyringtest.Ready(t, c)
		if got := keyringtest.Problems(t, s, keyring.ProblemNoLeader); len(got) > 0 {
			t.Errorf("problems %v", got)
		}
	})
}

// TestLeaderNamesServerWhoseLogTakesNothing: it answers heartbeats, and gets no further.
func TestLeaderNamesServerWhoseLogTakesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		full := keyringtest.Follower(c)
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if e.Server == full && e.Kind == "log" {
				return keyringtest.Reply{Err: errors.New("no space left on device")}
			}
			return keyringtest.Reply{}
		})
		keyringtest.RotateWhenReady(t, c)
		time.Sleep(5 * time.Minute)
		got := keyringtest.Problems(t, leader, keyring.ProblemStuck)
		if len(got) != 1 || got[0].Server != full.ID || !strings.Contains(got[0].Detail, "entries of raft's log behind") {
			t.Errorf("problems %v", keyringtest.StatusOf(t, leader).Problems)
		}
		c.OnEvent(nil)
		time.Sleep(5 * time.Minute)
		if got := keyringtest.Problems(t, leader, keyring.ProblemStuck); len(got) > 0 {
			t.Errorf("problems %v", got)
		}
	})
}
