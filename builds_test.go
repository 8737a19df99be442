package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// old is this build, and next the one after it, in which Backup and Forget came to be.
var (
	old  = meta.This
	next = meta.Build{
		Version: newer,
		Command: func(c *meta.Command) int {
			if c.Backup != nil || c.Forget != nil {
				return newer
			}
			return old.Command(c)
		},
		Ring: func(r *meta.Ring) int {
			if r.Backup != (meta.Backup{}) {
				return newer
			}
			return old.Ring(r)
		},
	}
)

const newer = meta.Version + 1

// first is the build of version 1.
var first = meta.Build{Version: 1}

// mixed is a cluster in which each server is of the build that builds says at its start.
func mixed(t *testing.T, n int, builds map[raft.ServerID]meta.Build) *keyringtest.Cluster {
	return keyringtest.NewCluster(t, keyringtest.Options{Servers: n, FSM: func(s *keyringtest.Server) *keyring.FSM {
		return keyring.NewFSMOf(builds[s.ID])
	}})
}

// noted is what the next build has and this one has not.
func noted(index uint64) meta.Command {
	return meta.Command{Backup: &meta.Backup{Index: index, Time: time.Unix(1, 0).UTC(), Digest: meta.Digest{1}}}
}

// ringOf is a server's ring as text.
func ringOf(s *keyringtest.Server) string {
	return string(must(keyring.Ring(s.FSM).Encode()))
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

// Scenario 24: a command is proposed when every server says that it applies it, and not before.
func TestCommandIsProposedWhenEveryServerAppliesIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		builds := map[raft.ServerID]meta.Build{"s1": next, "s2": next, "s3": old}
		c := mixed(t, 3, builds)
		keyringtest.Ready(t, c)
		keyringtest.MakeLeader(t, c, c.Server("s1"))
		leader := keyringtest.Ready(t, c)
		s3 := c.Server("s3")
		refused := func(want string) {
			t.Helper()
			before := keyring.Ring(leader.FSM).Backup
			err := keyring.Propose(t.Context(), leader.Keyring, noted(1))
			if err == nil || !strings.Contains(err.Error(), "version 4 of log entries: "+want) {
				t.Errorf("%v, want %q", err, want)
			}
			if keyring.Ring(leader.FSM).Backup != before {
				t.Error("it was applied")
			}
		}
		refused("s3 applies log entries up to version 3, but not version 4")
		keyringtest.RotateWhenReady(t, c)
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			return keyringtest.Reply{Hang: e.Kind == "call" && e.To == "s2" && strings.Contains(e.What, "hello")}
		})
		refused("s2 has not answered; s3 applies")
		c.OnEvent(nil)

		builds["s3"] = next
		c.Restart(s3)
		keyringtest.Ready(t, c)
		if err := keyring.Propose(t.Context(), leader.Keyring, noted(1)); err != nil {
			t.Error(err)
		}
		if keyring.Ring(leader.FSM).Backup.Index != 1 {
			t.Error("the command was not applied")
		}
		c.Stop(s3)
		refused("s3 has not answered")
		builds["s3"] = old // nothing that it said before counts
		c.Start(s3)
		hears(s3, leader)
		refused("s3 applies")
	})
}

// hears waits until a server that was started knows which server leads: until then it says nothing of itself.
func hears(s, leader *keyringtest.Server) {
	for {
		changed := s.Keyring.Changed()
		if _, id := s.Raft.LeaderWithID(); id == leader.ID {
			return
		}
		<-changed
	}
}

// tokenCommand adds a join token: it came with version 2.
func tokenCommand(leader *keyringtest.Server, end time.Time) meta.Command {
	return meta.Command{AddJoinToken: &meta.AddJoinToken{Token: meta.JoinToken{
		ID: meta.TokenID{1}, Server: "s4", End: end.UTC().Round(0), Key: keyring.Ring(leader.FSM).Active().ID,
		Sealed: make([]byte, meta.SealedTokenSize),
	}}}
}

// TestMixedBuildsWriteNoVersionTwo: a cluster with a server of version 1 has a log and snapshots of
// version 1, byte for byte.
func TestMixedBuildsWriteNoVersionTwo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		builds := map[raft.ServerID]meta.Build{"s1": old, "s2": old, "s3": first}
		c := mixed(t, 3, builds)
		keyringtest.RotateWhenReady(t, c)
		keyringtest.MakeLeader(t, c, c.Server("s1"))
		leader := keyringtest.Ready(t, c)
		add := tokenCommand(leader, time.Unix(1<<34, 0))
		err := keyring.Propose(t.Context(), leader.Keyring, add)
		if err == nil || !strings.Contains(err.Error(), "s3 applies log entries up to version 1, but not version 2") {
			t.Errorf("proposed to a server of version 1: %v", err)
		}
		for _, s := range c.Servers {
			if got := ringOf(s); !strings.HasPrefix(got, `{"version":1,`) {
				t.Errorf("%s has %s", s.ID, got)
			}
		}
		builds["s3"] = old
		c.Restart(c.Server("s3"))
		keyringtest.Ready(t, c)
		if err := keyring.Propose(t.Context(), leader.Keyring, add); err != nil {
			t.Error(err)
		}
		if got := ringOf(leader); !strings.HasPrefix(got, `{"version":2,`) {
			t.Errorf("all are of version 2, and the leader has %s", got)
		}
	})
}

// TestNonvotersWaitForOlderBuilds: while a server runs a build of version 2, no server becomes a permanent non-voter, nobody hands
// over for it, and nothing of version 3 is written. Voters are added all the same.
func TestNonvotersWaitForOlderBuilds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		second := meta.Build{Version: 2, Command: meta.This.Command, Ring: meta.This.Ring, Files: meta.This.Files}
		builds := map[raft.ServerID]meta.Build{"s1": meta.This, "s2": meta.This, "s3": second, "s4": meta.This, "s5": meta.This}
		c := mixed(t, 3, builds)
		keyringtest.Ready(t, c)
		keyringtest.MakeLeader(t, c, c.Server("s1"))
		leader := keyringtest.Ready(t, c)
		c.StartFresh("s5")
		nonvoters := map[string]func() error{
			"AddNonvoter": func() error {
				return leader.Keyring.AddNonvoter(t.Context(), "s4", "s4", keyring.AddServerOptions{})
			},
			"DemoteServer": func() error { return leader.Keyring.DemoteServer(t.Context(), "s2") },
		}
		itself := func() error { return leader.Keyring.DemoteServer(t.Context(), "s1") }
		before := leader.Raft.GetConfiguration().Configuration().Servers
		for name, call := range map[string]func() error{"AddNonvoter": nonvoters["AddNonvoter"], "DemoteServer": nonvoters["DemoteServer"], "of itself": itself} {
			if err := call(); err == nil || !strings.Contains(err.Error(), "s3 applies log entries up to version 2, but not version 3") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if after := leader.Raft.GetConfiguration().Configuration().Servers; !slices.Equal(before, after) || c.Leader() != leader {
			t.Fatalf("the servers are %v, and %s leads", after, c.Leader().ID)
		}
		if err := leader.Keyring.AddVoter(t.Context(), "s5", "s5", keyring.AddServerOptions{}); err != nil {
			t.Errorf("a voter: %v", err)
		}
		keyringtest.AwaitKeys(t, c)
		for _, s := range c.Servers {
			if got := ringOf(s); strings.HasPrefix(got, `{"version":3,`) {
				t.Errorf("%s has %s", s.ID, got)
			}
		}
		builds["s3"] = meta.This
		c.Restart(c.Server("s3"))
		c.StartFresh("s4")
		hears(c.Server("s3"), leader)
		for name, call := range nonvoters {
			if err := call(); err != nil {
				t.Errorf("%s, when all are of this build: %v", name, err)
			}
		}
		if got := ringOf(leader); !strings.HasPrefix(got, `{"version":3,`) {
			t.Errorf("the leader has %s", got)
		}
	})
}

// TestNothingIsAskedForVersionOne: no command of version 1 costs a question.
func TestNothingIsAskedForVersionOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := mixed(t, 3, map[raft.ServerID]meta.Build{"s1": next, "s2": next, "s3": next})
		keyringtest.Ready(t, c)
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if e.Kind == "call" && strings.Contains(e.What, "hello") {
				t.Errorf("%s", e)
			}
			return keyringtest.Reply{}
		})
		keyringtest.RotateWhenReady(t, c)
		c.OnEvent(nil)
	})
}

// TestLeaderGoesOnWhileACommandWaits: what the leader's loop can't propose yet is in Status, and does
// not keep it from the rest.
func TestLeaderGoesOnWhileACommandWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		builds := map[raft.ServerID]meta.Build{"s1": next, "s2": next, "s3": old, "s4": next}
		c := mixed(t, 4, builds)
		keyringtest.Ready(t, c)
		keyringtest.MakeLeader(t, c, c.Server("s1"))
		leader := keyringtest.Ready(t, c)
		c.Stop(c.Server("s4"))
		c.Remove(c.Server("s4")) // whose records are to be forgotten
		time.Sleep(20 * time.Second)
		if got := keyringtest.ProblemAbout(t, leader, keyring.ProblemWaiting, "s3"); !strings.Contains(got, "up to version 3") {
			t.Errorf("problem %q", got)
		}
		var asked atomic.Int32
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if e.Kind == "call" && e.Server == leader && strings.Contains(e.What, "hello") {
				asked.Add(1)
			}
			return keyringtest.Reply{}
		})
		key := keyringtest.RotateWhenReady(t, c)
		keyringtest.AwaitHolders(leader.Keyring, key.ID, 3)
		time.Sleep(2 * time.Minute)
		c.OnEvent(nil)
		if n := asked.Load(); n == 0 || n > 40 {
			t.Errorf("%d questions in two minutes", n)
		}
		if _, known := keyring.Ring(leader.FSM).Keystore("s4"); !known {
			t.Error("what only some servers apply was proposed")
		}

		builds["s3"] = next
		c.Restart(c.Server("s3"))
		time.Sleep(2 * time.Minute)
		if _, known := keyring.Ring(leader.FSM).Keystore("s4"); known {
			t.Error("the departed server is not forgotten")
		}
		if got := keyringtest.ProblemAbout(t, leader, keyring.ProblemWaiting, "s3"); got != "" {
			t.Errorf("problem %q", got)
		}
	})
}

// Scenario 24, I7: a server that meets an entry of a newer build, as after a downgrade, answers with
// an error, changes nothing, applies what follows, and does no harm: no snapshot without the entry,
// and nothing done as the leader. The newer build then has it all.
func TestOlderBuildOutlivesANewerEntry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		builds := map[raft.ServerID]meta.Build{"s1": next, "s2": next, "s3": next}
		c := mixed(t, 3, builds)
		first := keyringtest.RotateWhenReady(t, c)
		keyringtest.MakeLeader(t, c, c.Server("s1"))
		leader, s3 := keyringtest.Ready(t, c), c.Server("s3")
		sealed, err := leader.Keyring.Encrypt([]byte("hello"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := keyring.Propose(t.Context(), leader.Keyring, noted(1)); err != nil {
			t.Fatal(err)
		}
		builds["s3"] = old
		c.Restart(s3)
		keyringtest.AwaitState(s3.Keyring, first.ID, keyring.StateActive)
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		keyringtest.AwaitState(s3.Keyring, key.ID, keyring.StateActive)
		keyringtest.AwaitHolders(leader.Keyring, key.ID, 3)
		if keyring.Ring(s3.FSM).Backup.Index != 0 {
			t.Error("an entry that is unknown has changed something")
		}
		if _, err := s3.Keyring.Decrypt(sealed, nil); err != nil {
			t.Error(err)
		}
		const want = "from a newer build, and not applied"
		if got := keyringtest.ProblemAbout(t, s3, keyring.ProblemNewer, ""); !strings.Contains(got, want) {
			t.Errorf("problem %q", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := s3.Keyring.WaitReady(ctx); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("WaitReady: %v", err)
		}
		if err := s3.Raft.Snapshot().Error(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("snapshot: %v", err)
		}
		wantNoLead(t, c, s3)
		builds["s3"] = next
		c.Restart(s3)
		keyringtest.RotateWhenReady(t, c)
		synctest.Wait()
		time.Sleep(20 * time.Second)
		for _, s := range c.Servers {
			if got, want := ringOf(s), ringOf(leader); got != want {
				t.Errorf("%s has\n%s\nwant\n%s", s.ID, got, want)
			}
		}
	})
}

// wantNoLead makes a server the leader that has missed an entry. It seals nothing, and does not lead for long.
func wantNoLead(t *testing.T, c *keyringtest.Cluster, s3 *keyringtest.Server) {
	t.Helper()
	keyringtest.MakeLeader(t, c, s3)
	if _, err := s3.Keyring.Encrypt(nil, nil); err == nil {
		t.Error("a leader that has missed an entry seals")
	}
	time.Sleep(10 * time.Second)
	if c.Leader() == s3 {
		t.Error("a leader that has missed an entry leads on")
	}
}

// Scenario 24: a server of an older build that is sent a snapshot of a newer one refuses it and goes on.
func TestOlderBuildRefusesANewerSnapshot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		builds := map[raft.ServerID]meta.Build{"s1": next, "s2": next, "s3": next, "s4": old}
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, FSM: func(s *keyringtest.Server) *keyring.FSM {
			return keyring.NewFSMOf(builds[s.ID])
		}, Raft: func(conf *raft.Config) { conf.TrailingLogs = 0 }})
		keyringtest.RotateWhenReady(t, c)
		leader := keyringtest.Ready(t, c)
		if err := keyring.Propose(t.Context(), leader.Keyring, noted(1)); err != nil {
			t.Fatal(err)
		}
		if err := leader.Raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		s4 := c.Add("s4")
		time.Sleep(20 * time.Second)
		if got := ringOf(s4); got != `{"version":1}` {
			t.Errorf("the older build has %s", got)
		}
		if s4.Raft.State() == raft.Shutdown {
			t.Error("it does not go on")
		}
		c.Remove(s4)
		keyringtest.RotateWhenReady(t, liveBut(c, s4))
		builds["s4"] = next
		c.Wipe(s4)
		c.Join(s4)
		keyringtest.RotateWhenReady(t, c)
		time.Sleep(20 * time.Second)
		keyringtest.RotateWhenReady(t, c) // raft may have sent it the snapshot twice, and applies the log again with the next commit
		time.Sleep(20 * time.Second)
		if got, want := ringOf(s4), ringOf(leader); got != want {
			t.Errorf("the newer build has\n%s\nwant\n%s", got, want)
		}
	})
}

// liveBut stops a server and returns the cluster.
func liveBut(c *keyringtest.Cluster, s *keyringtest.Server) *keyringtest.Cluster {
	c.Stop(s)
	return c
}

func TestNewerSnapshotIsRefusedCompletely(t *testing.T) {
	f := keyring.NewFSMOf(next)
	entry := must(next.EncodeEntry(meta.Entry{Commands: []meta.Command{{Init: &meta.Init{Cluster: meta.ClusterID{1}}}, noted(1)}}))
	if err := f.Apply(&raft.Log{Index: 2, Type: raft.LogCommand, Data: entry, Extensions: []byte(keyringtest.Extensions)}); err != nil {
		t.Fatal(err)
	}
	snap := keyringtest.SnapshotOf(t, keyring.Mux(f, &keyringtest.App{}))
	host := &keyringtest.App{}
	keys := keyringtest.FilledFSM(t)
	before := must(keyring.Ring(keys).Encode())
	const want = "the snapshot is from a newer build"
	for name, fsm := range map[string]raft.FSM{"alone": keys, "mux": keyring.Mux(keys, host)} {
		err := keyringtest.RestoreFSM(fsm, snap)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "version 4, this build reads up to version 3") {
			t.Errorf("%s: %v", name, err)
		}
		if errors.Is(err, keyring.ErrCorrupt) {
			t.Errorf("%s: nothing is corrupt: %v", name, err)
		}
		if after := must(keyring.Ring(keys).Encode()); !bytes.Equal(after, before) || host.Text() != "" {
			t.Errorf("%s: a refused snapshot has changed something", name)
		}
	}
}

// TestNoSnapshotLeavesOutAnEntryOfANewerBuild: raft would drop the entry from its log with it.
func TestNoSnapshotLeavesOutAnEntryOfANewerBuild(t *testing.T) {
	keys := keyringtest.FilledFSM(t)
	for _, fsm := range []raft.FSM{keys, keyring.Mux(keys, &keyringtest.App{})} {
		if _, err := fsm.Snapshot(); err != nil {
			t.Fatal(err)
		}
	}
	newer := must(next.EncodeEntry(meta.Entry{Commands: []meta.Command{noted(1)}}))
	if err, _ := keys.Apply(&raft.Log{Index: 9, Type: raft.LogCommand, Data: newer, Extensions: []byte(keyringtest.Extensions)}).(error); !errors.Is(err, meta.ErrVersion) {
		t.Fatal(err)
	}
	for _, fsm := range []raft.FSM{keys, keyring.Mux(keys, &keyringtest.App{})} {
		if _, err := fsm.Snapshot(); err == nil || !strings.Contains(err.Error(), "log entry 9 is from a newer build") {
			t.Errorf("%T: %v", fsm, err)
		}
	}
}

// Scenario 24: a message of a newer build is refused as unsupported, by a server that goes on.
func TestNewerMessageIsUnsupported(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		keyringtest.Ready(t, c)
		s := c.Server("s1").Keyring
		for _, m := range []string{
			`"hello":{}`, `"gossip":{"to":["s2"]}`, `"ask":{"ids":[],"why":1}`,
		} {
			answer, err := s.ServePeer(t.Context(), "s2", fmt.Appendf(nil, `{"version":%d,%s}`, peer.Version+1, m))
			if err != nil {
				t.Fatal(err)
			}
			_, err = peer.DecodeAnswer[peer.HelloAnswer](answer)
			if r := (*peer.Refusal)(nil); !errors.As(err, &r) || r.Code != peer.Unsupported || !strings.Contains(err.Error(), "its build is older") {
				t.Errorf("%s: %v", m, err)
			}
		}
		answer, err := s.ServePeer(t.Context(), "s2", []byte(`{"version":1,"hello":{}}`))
		if err != nil {
			t.Fatal(err)
		}
		if a, err := peer.DecodeAnswer[peer.HelloAnswer](answer); err != nil || a.Build != meta.Version {
			t.Errorf("%v, %v", a, err)
		}
		keyringtest.RotateWhenReady(t, c)
	})
}

// TestCompromisedWaitsForNoOlderBuild, nor for a server that is down: it ends all keys all the same. With a
// time of publication it can't, and makes no key.
func TestCompromisedWaitsForNoOlderBuild(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		builds := map[raft.ServerID]meta.Build{"s1": old, "s2": old, "s3": first}
		c := keyringtest.NewCluster(t, keyringtest.Options{
			Servers: 3, FSM: func(s *keyringtest.Server) *keyring.FSM { return keyring.NewFSMOf(builds[s.ID]) },
			Configure: func(_ *keyringtest.Server, cfg *keyring.Config) { cfg.Data = keyring.NoData{} },
		})
		keyringtest.Ready(t, c)
		keyringtest.MakeLeader(t, c, c.Server("s1"))
		leader := keyringtest.Ready(t, c)
		before := signedKeys(leader)
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Compromised: true})
		if err != nil {
			t.Fatal(err)
		}
		endsAll(t, leader, before, key.ID)
		if got := ringOf(leader); !strings.HasPrefix(got, `{"version":1,`) {
			t.Errorf("a server is of version 1, and the leader has %s", got)
		}
		c.Stop(c.Server("s3")) // nobody waits for it either
		before = signedKeys(leader)
		if key, err = leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Compromised: true}); err != nil {
			t.Fatal(err)
		}
		endsAll(t, leader, before, key.ID)
		later := keyring.RotateOptions{Compromised: true, Publish: time.Now().Add(time.Hour)}
		files := keysOnDisk(leader)
		if _, err := leader.Keyring.Rotate(t.Context(), later); err == nil || !strings.Contains(err.Error(), "s3 has not answered") {
			t.Errorf("with Publish: %v", err)
		}
		if after := keysOnDisk(leader); !slices.Equal(after, files) {
			t.Errorf("files before %v, after %v", files, after)
		}
		builds["s3"] = old
		c.Restart(c.Server("s3"))
		if _, err := keyringtest.Ready(t, c).Keyring.Rotate(t.Context(), keyring.RotateOptions{Compromised: true}); err != nil {
			t.Error(err)
		}
	})
}

// signedKeys are the keys of a server's ring that may have signed something.
func signedKeys(s *keyringtest.Server) (ids []keyring.KeyID) {
	for _, k := range keyring.Ring(s.FSM).Keys {
		if k.State != meta.StatePrepublished {
			ids = append(ids, keyring.KeyID(k.ID))
		}
	}
	return ids
}

// keysOnDisk are the keys of which there are files, set aside or not.
func keysOnDisk(s *keyringtest.Server) (ids []string) {
	for _, name := range s.Disk.Names() {
		if id, _, isKey := strings.Cut(name, ".nks.json"); isKey {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// endsAll requires that each of the keys is revoked and to be removed, or removed, but the new one.
func endsAll(t *testing.T, s *keyringtest.Server, before []keyring.KeyID, key keyring.KeyID) {
	t.Helper()
	ring := keyring.Ring(s.FSM)
	if active := ring.Active(); active == nil || keyring.KeyID(active.ID) != key || active.Revoked {
		t.Errorf("%s is not active: %v", key, active)
	}
	for _, id := range before {
		if k := ring.Key(meta.KeyID(id)); k != nil && (!k.Revoked || !k.Remove) {
			t.Errorf("key %s: %+v", id, k)
		}
	}
}

// TestAdmissionWaitsForServersOfAnOlderBuild, and says for which.
func TestAdmissionWaitsForServersOfAnOlderBuild(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		id, disk := keyring.KeyID{7}, keyringtest.NewDisk()
		keyringtest.PlantKey(t, disk, id, keyring.InlineKEK())
		builds := map[raft.ServerID]meta.Build{"s1": meta.This, "s2": meta.This, "s3": meta.This}
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Disk: func(id raft.ServerID) *keyringtest.Disk {
			if id != "s1" {
				return keyringtest.NewDisk()
			}
			return disk
		}, FSM: func(s *keyringtest.Server) *keyring.FSM { return keyring.NewFSMOf(builds[s.ID]) }})
		keyringtest.Ready(t, c)
		older := keyringtest.Follower(c)
		builds[older.ID] = first
		c.Restart(older)
		leader := keyringtest.Ready(t, c)
		before := ringOf(leader)
		if err := leader.Keyring.Adopt(t.Context(), id); err == nil || !strings.Contains(err.Error(), string(older.ID)) || ringOf(leader) != before {
			t.Errorf("with a server of an older build: %v", err)
		}
		builds[older.ID] = meta.This
		c.Restart(older)
		leader = keyringtest.Ready(t, c)
		if err := leader.Keyring.Adopt(t.Context(), id); err != nil {
			t.Errorf("without one: %v", err)
		}
	})
}
