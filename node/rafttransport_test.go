package node_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/raftwire"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// blobs is an App of which only the sizes are known, and the bytes of a snapshot.
type blobs struct {
	mu       sync.Mutex // guards below
	changed  chan struct{}
	sizes    []int
	restored int
}

// of reads it.
func (b *blobs) of(f func(b *blobs)) <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b)
	return b.changed
}

func (b *blobs) change(f func(b *blobs)) {
	b.of(func(b *blobs) {
		f(b)
		close(b.changed)
		b.changed = make(chan struct{})
	})
}

// await waits until ok holds.
func (b *blobs) await(ctx context.Context, t *testing.T, what string, ok func(b *blobs) bool) {
	t.Helper()
	for {
		var is bool
		changed := b.of(func(b *blobs) { is = ok(b) })
		if is {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, ctx.Err())
		}
	}
}

func (b *blobs) Apply(l *raft.Log) any {
	b.change(func(b *blobs) { b.sizes = append(b.sizes, len(l.Data)) })
	return nil
}

const snapshotSize = 16 << 20

func (b *blobs) Snapshot() (raft.FSMSnapshot, error) { return b, nil }
func (b *blobs) Release()                            {}

func (b *blobs) Persist(sink raft.SnapshotSink) error {
	block := bytes.Repeat([]byte{0xdd, 0xff, 0xff, 0xff}, 16<<10) // arrays of 4 billion, to a decoder
	for range snapshotSize / len(block) {
		if _, err := sink.Write(block); err != nil {
			return errors.Join(err, sink.Cancel())
		}
	}
	return sink.Close()
}

func (b *blobs) Restore(r io.ReadCloser) error {
	defer r.Close()
	n, err := io.Copy(io.Discard, r)
	b.change(func(b *blobs) { b.restored += int(n) })
	return err
}

// TestLargeEntriesAndSnapshotsReachTheOthers over real connections: the largest command there is,
// what a server missed while it was down, and a snapshot.
func TestLargeEntriesAndSnapshotsReachTheOthers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var mu sync.Mutex
	apps := map[raft.ServerID]*blobs{}
	withApp := func(c *node.Config) {
		b := &blobs{changed: make(chan struct{})}
		mu.Lock()
		apps[c.ID], c.App = b, b
		mu.Unlock()
	}
	c := keyringtest.StartNodes(t, 3, withApp)
	c.Ready(ctx)
	leader := c.Nodes[c.Nodes["s1"].Leader()]
	apply := func(size int) {
		t.Helper()
		if _, err := leader.Apply(ctx, make([]byte, size)); err != nil {
			t.Error(err)
		}
	}
	if _, err := leader.Apply(ctx, make([]byte, keyring.MaxCommand+1)); !errors.Is(err, keyring.ErrTooLong) {
		t.Errorf("beyond MaxCommand: %v", err)
	}
	apply(keyring.MaxCommand)
	for id, b := range apps {
		b.await(ctx, t, string(id), func(b *blobs) bool { return slices.Equal(b.sizes, []int{keyring.MaxCommand}) })
	}

	down := raft.ServerID("s1")
	if c.Nodes[down] == leader {
		down = "s2"
	}
	if err := c.Nodes[down].Close(); err != nil {
		t.Fatal(err)
	}
	delete(c.Nodes, down)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() { apply(256 << 10) }) // at once, so that raft sends many in one request
	}
	wg.Wait()
	restart(ctx, t, c, down, withApp)
	apps[down].await(ctx, t, "catching up", func(b *blobs) bool { return len(b.sizes) == 65 })

	if err := node.RestoreRaft(leader); err != nil {
		t.Fatal(err)
	}
	for id, b := range apps {
		b.await(ctx, t, "snapshot at "+string(id), func(b *blobs) bool { return b.restored == snapshotSize })
	}
	apply(100)
	for id, b := range apps {
		b.await(ctx, t, "after the snapshot "+string(id), func(b *blobs) bool { return b.sizes[len(b.sizes)-1] == 100 })
	}
}

// restart starts a node again that was closed.
func restart(ctx context.Context, t *testing.T, c *keyringtest.Nodes, down raft.ServerID, withApp func(*node.Config)) {
	t.Helper()
	cfg := c.Config(down)
	cfg.KEKs = c.KEKs[down]
	withApp(&cfg)
	again, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes[down] = again
}

// What Apply takes fits a frame, with what raft puts around it.
func TestLargestCommandFitsAFrame(t *testing.T) {
	if keyring.MaxCommand > peer.MaxEntry {
		t.Errorf("commands of %d bytes, entries of %d", keyring.MaxCommand, peer.MaxEntry)
	}
	if keyring.MaxCommand >= raftwire.MaxEntry || raftwire.MaxEntry+16<<10 > peer.MaxFrame {
		t.Errorf("commands of %d bytes, entries of %d go out, frames of %d come in", keyring.MaxCommand, raftwire.MaxEntry, peer.MaxFrame)
	}
}

// TestMemberCantEndAnothersRaft sends what a member with raft's protocol can: the server goes on, and its log is
// as it was, so that it also starts again.
func TestMemberCantEndAnothersRaft(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 3, nil)
	c.Ready(ctx)
	from := keyringtest.Besides(c.Nodes["s1"].Leader())
	victim := from
	for id := range c.Nodes {
		if id != from && id != c.Nodes["s1"].Leader() {
			victim = id
		}
	}
	trans := c.RaftTransport(from, victim)
	defer trans.Close()
	to, term := raft.ServerAddress(c.Addrs[victim]), node.CurrentTerm(c.Nodes[victim])
	header := raft.RPCHeader{ProtocolVersion: 3, ID: []byte(from), Addr: []byte(c.Addrs[from])}
	for name, e := range map[string]*raft.Log{
		"configuration": {Index: 1, Term: term, Type: raft.LogConfiguration, Data: []byte("garbage")},
		"type":          {Index: 1, Term: term, Type: 99},
		"gap":           {Index: 1 << 40, Term: term, Type: raft.LogNoop},
	} {
		q := &raft.AppendEntriesRequest{RPCHeader: header, Term: term, Entries: []*raft.Log{e}, LeaderCommitIndex: 1 << 40}
		if err := trans.AppendEntries(victim, to, q, new(raft.AppendEntriesResponse)); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: %v", name, err)
		}
	}
	vote := &raft.RequestVoteRequest{RPCHeader: header, Term: 1<<64 - 1, LastLogIndex: 1 << 40, LastLogTerm: 1 << 40}
	if err := trans.RequestVote(victim, to, vote, new(raft.RequestVoteResponse)); err == nil {
		t.Error("the largest term is taken")
	}
	beat := &raft.AppendEntriesRequest{RPCHeader: header, Term: 1<<64 - 1}
	if err := trans.AppendEntries(victim, to, beat, new(raft.AppendEntriesResponse)); err == nil {
		t.Error("the largest term is taken from a heartbeat")
	}
	damaged := append([]byte("keyring-snapshot"), make([]byte, 100)...)
	install := &raft.InstallSnapshotRequest{
		RPCHeader: header, SnapshotVersion: 1, Term: term, LastLogIndex: 1 << 20, LastLogTerm: term,
		Configuration: raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "s1", Address: "s1:1"}}}), ConfigurationIndex: 1, Size: int64(len(damaged)),
	}
	if err := trans.InstallSnapshot(victim, to, install, new(raft.InstallSnapshotResponse), bytes.NewReader(damaged)); err == nil {
		t.Error("a damaged snapshot is taken")
	}
	if got := node.CurrentTerm(c.Nodes[victim]); got > term+1000 {
		t.Errorf("term %d", got)
	}
	if _, err := c.Nodes[victim].Rotate(ctx, keyring.RotateOptions{}); err != nil {
		t.Error(err)
	}
	c.Restart(ctx, victim)
	c.Ready(ctx)
}
