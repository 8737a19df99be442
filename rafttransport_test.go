package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// sent is a transport that keeps what is sent, and of which call number fails is refused or lost.
type sent struct {
	*raft.InmemTransport
	requests []raft.AppendEntriesRequest
	fails    int
	err      error
}

func (s *sent) AppendEntries(_ raft.ServerID, _ raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	s.requests = append(s.requests, *args)
	if len(s.requests) == s.fails {
		*resp = raft.AppendEntriesResponse{Term: args.Term + 1, NoRetryBackoff: true}
		return s.err
	}
	resp.Term, resp.LastLog, resp.Success = args.Term, uint64(len(s.requests)), true
	return nil
}

func TestRequestsAreSplit(t *testing.T) {
	const limit = 1 << 20
	lost := errors.New("lost")
	rnd := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 2*limit)
	for range 500 {
		req := &raft.AppendEntriesRequest{Term: 7, PrevLogEntry: 40, PrevLogTerm: 3, LeaderCommitIndex: 40 + rnd.Uint64N(80), RPCHeader: raft.RPCHeader{Addr: []byte("l")}}
		for i := range rnd.IntN(64) {
			size := rnd.IntN(limit >> rnd.IntN(8))
			if rnd.IntN(8) == 0 {
				size = rnd.IntN(4 * limit)
			}
			req.Entries = append(req.Entries, &raft.Log{Index: 41 + uint64(i), Term: 3 + uint64(i)/8, Data: data[:size/2], Extensions: data[:size/2]})
		}
		before := *req
		s := &sent{fails: rnd.IntN(6)}
		if rnd.IntN(2) == 0 {
			s.err = lost
		}
		resp := raft.AppendEntriesResponse{NoRetryBackoff: true} // of an earlier call
		err := keyring.SplitTransport(s).AppendEntries("b", "b", req, &resp)

		var got []*raft.Log
		prev := raft.Log{Index: 40, Term: 3}
		for i, r := range s.requests {
			size := 0
			for _, e := range r.Entries {
				size += len(e.Data) + len(e.Extensions)
			}
			got = append(got, r.Entries...)
			commit := req.LeaderCommitIndex
			if len(got) < len(req.Entries) {
				commit = min(commit, got[len(got)-1].Index)
			}
			if size > limit && len(r.Entries) > 1 || len(r.Entries) == 0 && len(req.Entries) > 0 {
				t.Fatalf("request %d: %d bytes in %d entries", i, size, len(r.Entries))
			}
			if r.Term != 7 || string(r.Addr) != "l" || r.PrevLogEntry != prev.Index || r.PrevLogTerm != prev.Term || r.LeaderCommitIndex != commit {
				t.Fatalf("request %d of %d: %+v after %d, %d, want commit index %d", i, len(s.requests), r, prev.Index, prev.Term, commit)
			}
			if len(got) > 0 {
				prev = *got[len(got)-1]
			}
		}
		failed := s.fails > 0 && len(s.requests) == s.fails
		if !slices.Equal(got, req.Entries[:len(got)]) || (len(got) < len(req.Entries)) && !failed || len(s.requests) > s.fails && s.fails > 0 {
			t.Fatalf("%d of %d entries in %d requests, the %d. fails", len(got), len(req.Entries), len(s.requests), s.fails)
		}
		want := raft.AppendEntriesResponse{Term: 7, LastLog: uint64(len(s.requests)), Success: true}
		if failed {
			want = raft.AppendEntriesResponse{Term: 8, NoRetryBackoff: true}
		}
		if resp.Term != want.Term || resp.LastLog != want.LastLog || resp.Success != want.Success || resp.NoRetryBackoff != want.NoRetryBackoff || failed && err != s.err || !failed && err != nil {
			t.Fatalf("%+v, %v, want %+v", resp, err, want)
		}
		if before.PrevLogEntry != req.PrevLogEntry || before.LeaderCommitIndex != req.LeaderCommitIndex || len(before.Entries) != len(req.Entries) {
			t.Fatal("raft's request is changed")
		}
	}
}

// Raft finds out by assertion whether a transport can ask before it votes, and be closed.
func TestSplittingKeepsWhatATransportCan(t *testing.T) {
	_, inner := raft.NewInmemTransport("a")
	trans := keyring.SplitTransport(inner)
	if _, ok := trans.(raft.WithPreVote); !ok {
		t.Error("no pre-vote")
	}
	if _, ok := trans.(raft.WithClose); !ok {
		t.Error("no Close")
	}
}

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
// what a server missed while it was away, and a snapshot.
func TestLargeEntriesAndSnapshotsReachTheOthers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var mu sync.Mutex
	apps := map[raft.ServerID]*blobs{}
	withApp := func(c *keyring.NodeConfig) {
		b := &blobs{changed: make(chan struct{})}
		mu.Lock()
		apps[c.ID], c.App = b, b
		mu.Unlock()
	}
	c := startNodes(t, 3, withApp)
	c.ready(ctx)
	leader := c.nodes[c.nodes["s1"].Leader()]
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

	away := raft.ServerID("s1")
	if c.nodes[away] == leader {
		away = "s2"
	}
	if err := c.nodes[away].Close(); err != nil {
		t.Fatal(err)
	}
	delete(c.nodes, away)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() { apply(256 << 10) }) // at once, so that raft sends many in one request
	}
	wg.Wait()
	cfg := c.config(away)
	cfg.KEKs = c.keks[away]
	withApp(&cfg)
	node, err := keyring.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.nodes[away] = node
	apps[away].await(ctx, t, "catching up", func(b *blobs) bool { return len(b.sizes) == 65 })

	if err := keyring.RestoreRaft(leader); err != nil {
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

// What Apply takes fits a frame, with what raft puts around it.
func TestLargestCommandFitsAFrame(t *testing.T) {
	if keyring.MaxCommand > peer.MaxEntry {
		t.Errorf("commands of %d bytes, entries of %d", keyring.MaxCommand, peer.MaxEntry)
	}
}
