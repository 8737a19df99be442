package node_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// fallen is a cluster of three servers that had something sealed under each of some keys, and are
// all stopped.
type fallen struct {
	*keyringtest.Nodes
	ctx    context.Context
	keys   []keyring.KeyID
	sealed [][]byte // under each
}

func fallenCluster(t *testing.T) *fallen {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	f := &fallen{ctx: ctx}
	f.Nodes = keyringtest.StartNodes(t, 3, func(cfg *node.Config) { // s1 has the KEK 1, and so on
		cfg.KEKs = []keyring.KEK{kektest.File(t, bytes.Repeat([]byte{cfg.ID[1] - '0'}, 32))}
	})
	f.Ready(ctx)
	n := f.Nodes.Nodes["s1"]
	for range 4 {
		key, err := n.Rotate(ctx, keyring.RotateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		keyringtest.AwaitHolders(n.Keyring(), key.ID, 3)
		sealed, err := n.Encrypt(ctx, []byte("sealed"), key.ID[:])
		if err != nil {
			t.Fatal(err)
		}
		f.keys, f.sealed = append(f.keys, key.ID), append(f.sealed, sealed)
	}
	f.stop()
	return f
}

// stop closes all servers.
func (f *fallen) stop() {
	f.TB.Helper()
	f.Close()
	clear(f.Nodes.Nodes)
}

// lose deletes the directory of a server.
func (f *fallen) lose(ids ...raft.ServerID) {
	f.TB.Helper()
	for _, id := range ids {
		if err := os.RemoveAll(f.Dirs[id]); err != nil {
			f.TB.Fatal(err)
		}
	}
}

// copy copies a part of one server's directory to another's.
func (f *fallen) copy(from, to raft.ServerID, part string) {
	f.TB.Helper()
	if err := os.CopyFS(filepath.Join(f.Dirs[to], part), os.DirFS(filepath.Join(f.Dirs[from], part))); err != nil {
		f.TB.Fatal(err)
	}
}

// newestSnapshot is what a server's newest snapshot says of itself.
func (f *fallen) newestSnapshot(id raft.ServerID) *raft.SnapshotMeta {
	f.TB.Helper()
	snaps, err := raft.NewFileSnapshotStore(filepath.Join(f.Dirs[id], "raft"), 1, io.Discard)
	if err != nil {
		f.TB.Fatal(err)
	}
	list, err := snaps.List()
	if err != nil || len(list) == 0 {
		f.TB.Fatal(list, err)
	}
	return list[0]
}

// conf is the configuration of a server that knows all three.
func (f *fallen) conf(id raft.ServerID) node.Config {
	cfg := f.Config(id)
	cfg.KEKs, cfg.Peers = f.KEKs[id], f.Addrs
	return cfg
}

// start starts servers and waits until they are ready.
func (f *fallen) start(cfgs ...node.Config) {
	f.TB.Helper()
	for _, cfg := range cfgs {
		n, err := node.Start(f.ctx, cfg)
		if err != nil {
			f.TB.Fatalf("%s: %v", cfg.ID, err)
		}
		f.Nodes.Nodes[cfg.ID] = n
	}
	f.Ready(f.ctx)
}

// await waits until a server's status is as wanted.
func (f *fallen) await(n *node.Node, what string, wanted func(keyring.Status) bool) {
	f.TB.Helper()
	for {
		changed := n.Keyring().Changed()
		st, err := n.Keyring().Status(f.ctx)
		if err != nil {
			f.TB.Fatal(err)
		}
		if wanted(st) {
			return
		}
		select {
		case <-changed:
		case <-f.ctx.Done():
			f.TB.Fatalf("not %s: %+v", what, st)
		}
	}
}

// opens wants a server to open what is sealed under each key but those that are missing.
func (f *fallen) opens(n *node.Node, missing ...keyring.KeyID) {
	f.TB.Helper()
	for i, id := range f.keys {
		got, err := n.Keyring().Decrypt(f.sealed[i], id[:])
		if opened := err == nil && string(got) == "sealed"; opened == slices.Contains(missing, id) {
			f.TB.Errorf("what is sealed under key %d: %q, %v", i, got, err)
		}
	}
}

// rise starts the others with nothing, and wants all of them to have all, and another rotation.
func (f *fallen) rise(first *node.Node) {
	f.TB.Helper()
	for id := range f.Addrs {
		if f.Nodes.Nodes[id] == nil {
			if err := first.AddServer(f.ctx, id, f.Addrs[id]); err != nil {
				f.TB.Fatal(err)
			}
			f.start(f.conf(id))
		}
	}
	key, err := first.Rotate(f.ctx, keyring.RotateOptions{})
	if err != nil {
		f.TB.Fatal(err)
	}
	for _, id := range append(slices.Clone(f.keys), key.ID) {
		keyringtest.AwaitHolders(first.Keyring(), id, 3)
	}
	for _, n := range f.Nodes.Nodes {
		f.opens(n)
	}
	f.await(first, "three voters", func(st keyring.Status) bool {
		return len(st.Servers) == 3 && !slices.ContainsFunc(st.Servers, func(s raft.Server) bool { return s.Suffrage != raft.Voter })
	})
}

func TestOneSurvivorOfThreeRecovers(t *testing.T) {
	t.Parallel()
	f := fallenCluster(t)
	f.lose("s1", "s3")
	r, err := node.Recover(f.ctx, f.conf("s2"))
	if err != nil || len(r.Missing) > 0 || r.Index < 10 {
		t.Fatalf("%+v, %v", r, err)
	}
	again, err := node.Recover(f.ctx, f.conf("s2")) // as after a crash
	if err != nil || again.Index != r.Index || len(again.Missing) > 0 {
		t.Fatalf("again %+v, %v", again, err)
	}
	f.start(f.conf("s2"))
	n := f.Nodes.Nodes["s2"]
	f.opens(n)
	f.rise(n)
}

// TestAnySnapshotAndAnyKeystoreRecover: nothing is left but a snapshot of one server and the keystore
// of another, and they become a third.
func TestAnySnapshotAndAnyKeystoreRecover(t *testing.T) {
	t.Parallel()
	f := fallenCluster(t)
	f.start(f.conf("s1"), f.conf("s2"))
	if err := node.SnapshotRaft(f.Nodes.Nodes["s1"]); err != nil {
		t.Fatal(err)
	}
	f.stop()
	f.lose("s3")
	f.copy("s1", "s3", "raft/snapshots")
	was := f.newestSnapshot("s3").Term
	f.copy("s2", "s3", "keystore")
	f.lose("s1", "s2")
	cfg := f.conf("s3")
	if r, err := node.Recover(f.ctx, cfg); err != nil || len(r.Missing) != 5 || r.Missing[0].Err == nil {
		t.Errorf("without the KEK: %+v, %v", r, err)
	}
	cfg.OldKEKs = f.KEKs["s2"]
	if r, err := node.Recover(f.ctx, cfg); err != nil || len(r.Missing) > 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	f.start(cfg)
	n := f.Nodes.Nodes["s3"]
	f.opens(n)
	f.rise(n)
	if term := node.CurrentTerm(n); term <= was { // else a server that has the snapshot alone has the newer log
		t.Errorf("the term is %d, the snapshot's is %d", term, was)
	}
}

// TestRecoveryNamesWhatIsLost, and what is lost comes back with its file.
func TestRecoveryNamesWhatIsLost(t *testing.T) {
	t.Parallel()
	f := fallenCluster(t)
	lost := f.keys[1]
	file := filepath.Join(f.Dirs["s2"], "keystore", lost.String()+".nks.json")
	kept, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	f.lose("s1", "s3")
	r, err := node.Recover(f.ctx, f.conf("s2"))
	if err != nil || !slices.Equal(r.Missing, []keyring.MissingKey{{ID: lost}}) || time.Since(r.Time) > time.Hour {
		t.Fatalf("%+v, %v", r, err)
	}
	f.start(f.conf("s2"))
	n := f.Nodes.Nodes["s2"]
	f.opens(n, lost)
	if err := os.WriteFile(file, kept, 0o600); err != nil {
		t.Fatal(err)
	}
	f.await(n, "whole", func(st keyring.Status) bool { return len(st.Missing) == 0 })
	f.opens(n)
}

func TestRecoverNodeRefuses(t *testing.T) {
	t.Parallel()
	f := fallenCluster(t)
	refused := func(what, why string) {
		t.Helper()
		r, err := node.Recover(f.ctx, f.conf("s1"))
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %+v, %v, want %q", what, r, err, why)
		}
	}
	f.start(f.conf("s1"), f.conf("s2"))
	refused("a server that runs", "one process at a time")
	if err := node.SnapshotRaft(f.Nodes.Nodes["s1"]); err != nil {
		t.Fatal(err)
	}
	f.stop()
	dir := filepath.Join(f.Dirs["s1"], "raft")
	states, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "state.bin"))
	if err != nil || len(states) != 1 {
		t.Fatal(states, err)
	}
	whole, err := os.ReadFile(states[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range [][]byte{whole[:100], whole} {
		if err := os.WriteFile(states[0], content, 0o600); err != nil {
			t.Fatal(err)
		}
		if len(content) < len(whole) {
			refused("a damaged snapshot", "the newest snapshot")
		}
	}
	f.start(f.conf("s1"), f.conf("s2")) // nothing has changed
	f.opens(f.Nodes.Nodes["s1"])
	f.stop()
	f.lose("s1")
	f.copy("s2", "s1", "keystore")
	refused("a keystore alone", "neither a log nor a snapshot")
}

// lines is a log that hands on its lines with some text in them.
type lines struct {
	text string
	seen chan time.Time
}

func (l lines) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(l.text)) {
		select {
		case l.seen <- time.Now():
		default:
		}
	}
	return len(b), nil
}

// TestServerThatCanNotBecomeAVoterIsTriedLessAndLess, and named: the keys that the leader has files of
// are under another KEK, and so it holds none of them.
func TestServerThatCanNotBecomeAVoterIsTriedLessAndLess(t *testing.T) {
	t.Parallel()
	f := fallenCluster(t)
	if err := os.RemoveAll(filepath.Join(f.Dirs["s3"], "keystore")); err != nil {
		t.Fatal(err)
	}
	f.copy("s2", "s3", "keystore")
	if err := os.RemoveAll(filepath.Join(f.Dirs["s1"], "raft")); err != nil {
		t.Fatal(err)
	}
	f.lose("s2")
	cfg := f.conf("s3")
	if _, err := node.Recover(f.ctx, cfg); err != nil {
		t.Fatal(err)
	}
	log := lines{"could not promote a server:", make(chan time.Time, 3)}
	cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: log})
	for _, cfg := range []node.Config{cfg, f.conf("s1")} {
		if cfg.ID == "s1" {
			if err := f.Nodes.Nodes["s3"].AddServer(f.ctx, "s1", cfg.Addr); err != nil {
				t.Fatal(err)
			}
		}
		n, err := node.Start(f.ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		f.Nodes.Nodes[cfg.ID] = n
	}
	var tries []time.Time
	for range cap(log.seen) {
		select {
		case at := <-log.seen:
			tries = append(tries, at)
		case <-f.ctx.Done():
			t.Fatal("it is not tried")
		}
	}
	if took := tries[2].Sub(tries[0]); took < time.Second {
		t.Errorf("three tries in %v", took)
	}
	f.await(f.Nodes.Nodes["s3"], "telling of it", func(st keyring.Status) bool {
		return slices.ContainsFunc(st.Problems, func(p keyring.Problem) bool { return p.Kind == keyring.ProblemNonvoter && p.Server == "s1" })
	})
}
