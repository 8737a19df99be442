package node_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// fullNodes are three ready servers whose disks may be full.
type fullNodes struct {
	*keyringtest.Nodes
	full map[raft.ServerID]*atomic.Bool
}

func startFullNodes(t *testing.T) fullNodes {
	f := fullNodes{full: map[raft.ServerID]*atomic.Bool{}}
	f.Nodes = keyringtest.StartNodes(t, 3, func(cfg *node.Config) {
		is := &atomic.Bool{}
		f.full[cfg.ID] = is
		node.SlowRaft(cfg)
		node.WrapRaftLog(cfg, func(log raft.LogStore) raft.LogStore { return fullLog{log, is} })
		node.WrapRaftStable(cfg, func(s raft.StableStore) raft.StableStore { return fullStable{s, is} })
	})
	f.Ready(t.Context())
	return f
}

// await waits until Status of a server says that of raft's disk, or nothing.
func (f fullNodes) await(t *testing.T, id raft.ServerID, want string) {
	t.Helper()
	for {
		changed := f.Nodes.Nodes[id].Keyring().Changed()
		if got := raftDiskProblem(t, f.Nodes.Nodes[id].Keyring()); (got != "") == (want != "") && strings.Contains(got, want) {
			return
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			t.Fatal("it never says so")
		}
	}
}

// TestNodeSaysThatRaftCanNotWrite, as long as it can't.
func TestNodeSaysThatRaftCanNotWrite(t *testing.T) {
	t.Parallel()
	c := startFullNodes(t)
	defer c.Close()
	leader := c.Nodes.Nodes["s1"].Leader()
	id := keyringtest.Besides(leader)
	c.full[id].Store(true)
	if _, err := c.Nodes.Nodes[leader].Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.await(t, id, "entries of its log since")
	c.full[id].Store(false)
	c.await(t, id, "")
}

// TestNodeOpensWhileItsRaftIsParked: the disk fails, and then another leader is elected. The server's process lives, opens
// what it has the keys for, and takes part again when the disk does.
func TestNodeOpensWhileItsRaftIsParked(t *testing.T) {
	t.Parallel()
	ctx, c := t.Context(), startFullNodes(t)
	leader := c.Nodes.Nodes["s1"].Leader()
	parked := keyringtest.Besides(leader)
	third := keyringtest.Besides(parked)
	n := c.Nodes.Nodes[parked]
	hello, err := n.Encrypt(ctx, []byte("hello"), nil)
	if err != nil {
		t.Fatal(err)
	}
	park := func(to raft.ServerID) {
		t.Helper()
		c.full[parked].Store(true)
		if err := c.Nodes.Nodes[leader].TransferLeadershipTo(ctx, to); err != nil {
			t.Fatal(err)
		}
		c.await(t, parked, "its term and vote since")
		if out, err := n.Keyring().Decrypt(hello, nil); err != nil || string(out) != "hello" {
			t.Errorf("while raft is parked: %q, %v", out, err)
		}
	}
	park(third)
	if _, err := c.Nodes.Nodes[third].Rotate(ctx, keyring.RotateOptions{}); err != nil {
		t.Errorf("the others: %v", err)
	}
	c.full[parked].Store(false)
	c.await(t, parked, "")
	key, err := n.Rotate(ctx, keyring.RotateOptions{}) // returns when this server has it
	if err != nil || keyOf(n, key.ID).State != keyring.StateActive {
		t.Errorf("afterwards: %v", err)
	}
	if err := n.TransferLeadershipTo(ctx, third); err != nil {
		t.Fatal(err)
	}
	park(leader)
	c.Close() // a raft that is parked ends too
}

// fullLog is a log on a disk that may be full.
type fullLog struct {
	raft.LogStore
	full *atomic.Bool
}

func (l fullLog) StoreLogs(logs []*raft.Log) error {
	if l.full.Load() {
		return errors.New("no space left on device")
	}
	return l.LogStore.StoreLogs(logs)
}

// fullStable is the store of a term and vote on a disk that may be full.
type fullStable struct {
	raft.StableStore
	full *atomic.Bool
}

func (s fullStable) Set(key, value []byte) error {
	if s.full.Load() {
		return errors.New("no space left on device")
	}
	return s.StableStore.Set(key, value)
}

func (s fullStable) SetUint64(key []byte, value uint64) error {
	if s.full.Load() {
		return errors.New("no space left on device")
	}
	return s.StableStore.SetUint64(key, value)
}

// raftDiskProblem is what Status says of raft's disk, or nothing.
func raftDiskProblem(t *testing.T, k *keyring.Keyring) string {
	t.Helper()
	st, err := k.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range st.Problems {
		if p.Kind == keyring.ProblemRaftDisk {
			return p.Detail
		}
	}
	return ""
}

// TestLeaderSaysThatItsDiskHangs while a call waits for it, and no longer than that.
func TestLeaderSaysThatItsDiskHangs(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		frozen := &frozenLog{thaw: make(chan struct{})}
		cfg := node.Config{Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}}
		node.WrapRaftLog(&cfg, func(log raft.LogStore) raft.LogStore { frozen.LogStore = log; return frozen })
		n, err := node.Start(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer closeNode(t, n)
		if err := n.Keyring().WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		frozen.is.Store(true)
		began, rotated := time.Now(), make(chan struct{})
		go func() {
			defer close(rotated)
			n.Rotate(context.WithoutCancel(t.Context()), keyring.RotateOptions{}) // may have been given up meanwhile
		}()
		awaitDisk := func(want string) {
			t.Helper()
			for {
				changed := n.Keyring().Changed()
				if got := raftDiskProblem(t, n.Keyring()); (got != "") == (want != "") && strings.Contains(got, want) {
					return
				}
				<-changed
			}
		}
		awaitDisk("entries of its log has not returned since")
		if took := time.Since(began); took > 11*time.Second {
			t.Errorf("told after %v", took)
		}
		frozen.is.Store(false)
		close(frozen.thaw)
		<-rotated
		awaitDisk("")
		if _, err := n.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}

// frozenLog is a log on a disk that may be frozen: what is written then returns after thaw.
type frozenLog struct {
	raft.LogStore
	is   atomic.Bool
	thaw chan struct{}
}

func (l *frozenLog) StoreLogs(logs []*raft.Log) error {
	if l.is.Load() {
		<-l.thaw
	}
	return l.LogStore.StoreLogs(logs)
}
