package scenarios_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

var scale = flag.Int("records", 10_000, "records that are moved through changes of the leader")

// TestRecordsMoveOnceThroughLeaderChanges: three Nodes, two writers, a reader, and a leader that is
// deposed or closed again and again. The log decides what was moved: what each server's FSM counts
// in Apply is part of its state.
func TestRecordsMoveOnceThroughLeaderChanges(t *testing.T) {
	t.Parallel()
	const changes = 10
	records := *scale
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	c := startLedgers(ctx, t, records)
	defer func() { cancel(); c.load.Wait() }()
	began := time.Now()
	c.fill()
	old := c.active()
	late := c.seal("late")
	filled := time.Since(began)

	stop := make(chan struct{})
	c.load.Go(func() { c.write(0, stop) })
	c.load.Go(func() { c.write(1, stop) })
	c.load.Go(func() { c.read(stop) })
	share := records / (changes + 1)
	c.brake.allow(share + ahead)
	key, err := c.leader().node.Rotate(ctx, keyring.RotateOptions{Full: true})
	if err != nil {
		t.Fatal(err)
	}
	keyringtest.AwaitHolders(c.leader().node.Keyring(), key.ID, 3) // so that any of them can be closed

	for n := range changes {
		due := share * (n + 1)
		c.brake.allow(due + ahead)
		c.await(func(s ledgerCounts) bool { return s.Moved >= due })
		leader := c.leader()
		if n%2 == 0 { // it comes back with a snapshot, or with the log alone
			leader = c.snapshot(leader)
		}
		if n%3 == 0 { // it is deposed first, under load
			leader = c.depose(leader)
		}
		c.restart(leader)
	}
	c.brake.allow(math.MaxInt)
	for _, s := range c.servers() {
		c.awaitState(s, old, keyring.StateDeprecated)
	}
	moved := time.Since(began) - filled
	close(stop)
	c.load.Wait()

	if err := c.store(keyringtest.RecordPut{Ref: "late", New: late}); !errors.Is(err, keyring.ErrStaleKey) {
		t.Errorf("sealed before the rotation, stored after the last scan: %v", err)
	}
	t.Logf("%d records, filled in %v, moved in %v", records, filled, moved)
	c.checkMoves(old, records)
}

// checkMoves wants each record that no writer has sealed again to have moved once, with few conflicts, under load.
func (c *ledgers) checkMoves(old keyring.KeyID, records int) {
	c.TB.Helper()
	end := c.check(old)
	c.TB.Logf("%d moves, %d by writers, %d conflicts", end.Moved, end.Resealed, end.Conflicts)
	c.TB.Logf("%d batches cut short", c.cut.Load())
	c.TB.Logf("term %d, %d writes, %d reads", end.Term, c.writes.Load(), c.reads.Load())
	left := records - end.Resealed // to the rekey
	if end.Moved != left {
		c.TB.Errorf("%d moves of %d records that no writer had sealed again", end.Moved, left)
	}
	if tries := end.Moved + end.Conflicts; end.Conflicts == 0 || tries > left*105/100 {
		c.TB.Errorf("%d moves tried of %d records, %d of them conflicts", tries, left, end.Conflicts)
	}
	if int(c.writes.Load()) < records/1000 || int(c.reads.Load()) < records/10 {
		c.TB.Errorf("%d writes, %d reads: that is no load", c.writes.Load(), c.reads.Load())
	}
}

// ahead is how many records may be moved while the leader is being changed.
const ahead = 6 * 256

// ledgers are three Nodes with ledgers.
type ledgers struct {
	*keyringtest.Nodes
	ctx    context.Context
	refs   []string
	told   []int // the last write that was said to be stored, by record; each of one writer
	orders [2]chan order
	brake  brake
	load   sync.WaitGroup

	batches, cut, writes, reads atomic.Int64

	mu      sync.Mutex // guards below
	up      map[raft.ServerID]*ledgerServer
	changed chan struct{} // closed when up changes
}

// order has a writer write that record now.
type order struct {
	record int
	done   chan struct{}
}

func startLedgers(ctx context.Context, t *testing.T, records int) *ledgers {
	c := &ledgers{
		ctx: ctx, told: make([]int, records), orders: [2]chan order{make(chan order), make(chan order)},
		up: map[raft.ServerID]*ledgerServer{}, changed: make(chan struct{}),
	}
	for i := range records {
		c.refs = append(c.refs, fmt.Sprintf("record/%06d", i))
	}
	c.Nodes = keyringtest.StartNodes(t, 3, func(cfg *node.Config) { c.up[cfg.ID] = c.newServer(cfg) })
	for id, s := range c.up {
		s.node, s.level = c.Nodes.Nodes[id], true
		close(s.started)
	}
	c.Ready(ctx)
	return c
}

// newServer completes the configuration of a server that is about to start.
func (c *ledgers) newServer(cfg *node.Config) *ledgerServer {
	s := &ledgerServer{c: c, id: cfg.ID, keys: keyring.NewFSM()}
	s.started = make(chan struct{})
	s.ledger = newLedger(s.keys)
	cfg.App, cfg.Keys, cfg.Data, cfg.Rotation.Every = s.ledger, s.keys, s, -1
	return s
}

// servers returns those that are up.
func (c *ledgers) servers() []*ledgerServer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.up))
}

// led has the leader do something, and the next one if it does not lead any more.
func (c *ledgers) led(do func(*ledgerServer) error) error {
	for {
		c.mu.Lock()
		up, wait := slices.Collect(maps.Values(c.up)), []<-chan struct{}{c.changed}
		c.mu.Unlock()
		for _, s := range up {
			k := s.node.Keyring()
			wait = append(wait, k.Changed())
			if _, err := k.Encrypt(nil, nil); err != nil {
				continue
			}
			if err := do(s); !unled(err) {
				return err
			}
		}
		if err := c.any(wait); err != nil {
			return err
		}
	}
}

func unled(err error) bool {
	return errors.Is(err, keyring.ErrNotLeader) || errors.Is(err, keyring.ErrNotReady) ||
		errors.Is(err, keyring.ErrClosed)
}

// any waits for one of at most four.
func (c *ledgers) any(wait []<-chan struct{}) error {
	var ch [4]<-chan struct{}
	copy(ch[:], wait)
	select {
	case <-ch[0]:
	case <-ch[1]:
	case <-ch[2]:
	case <-ch[3]:
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
	return nil
}

// leader returns a server that leads and is ready.
func (c *ledgers) leader() (leader *ledgerServer) {
	c.TB.Helper()
	if err := c.led(func(s *ledgerServer) error { leader = s; return nil }); err != nil {
		c.TB.Fatal("no leader: ", err)
	}
	return leader
}

// await waits until a ledger has counted enough.
func (c *ledgers) await(enough func(ledgerCounts) bool) {
	c.TB.Helper()
	for {
		var wait []<-chan struct{}
		var counts ledgerCounts
		for _, s := range c.servers() {
			var changed <-chan struct{}
			if counts, changed = s.ledger.look(); enough(counts) {
				return
			}
			wait = append(wait, changed)
		}
		if err := c.any(wait); err != nil {
			c.TB.Fatalf("there is no more than %+v: %v", counts, err)
		}
	}
}

// catchUp waits until a ledger has applied all that another has.
func (c *ledgers) catchUp(s, with *ledgerServer) {
	c.TB.Helper()
	for want, _ := with.ledger.look(); ; {
		counts, changed := s.ledger.look()
		if counts.Index >= want.Index {
			return
		}
		if err := c.any([]<-chan struct{}{changed}); err != nil {
			c.TB.Fatalf("%s has %d, not %d: %v", s.id, counts.Index, want.Index, err)
		}
	}
}

func (c *ledgers) awaitState(s *ledgerServer, id keyring.KeyID, want keyring.State) {
	c.TB.Helper()
	for {
		changed := s.node.Keyring().Changed()
		state := keyringtest.Ring(s.keys).Key(meta.KeyID(id)).State
		if keyring.State(state) == want {
			return
		}
		if err := c.any([]<-chan struct{}{changed}); err != nil {
			counts, _ := s.ledger.look()
			c.TB.Fatalf("%s: the key is %s after %d moves and not %s: %v", s.id, state, counts.Moved, want, err)
		}
	}
}

func (c *ledgers) active() keyring.KeyID {
	return keyring.KeyID(keyringtest.Ring(c.leader().keys).Active().ID)
}

// snapshot has the leader's raft write a snapshot, as every backup does, and returns the leader that did it.
func (c *ledgers) snapshot(leader *ledgerServer) *ledgerServer {
	c.TB.Helper()
	to := kektest.Identity(c.TB).Recipient()
	err := c.led(func(s *ledgerServer) error {
		leader = s
		_, err := s.node.Keyring().Backup(c.ctx, io.Discard, to)
		return err
	})
	if err != nil {
		c.TB.Fatal(err)
	}
	return leader
}

// depose has another server stand for election, and returns who leads when all have heard of it. The
// other may be behind, and raft then lets it believe in the old leader until a new one is heard of: if
// the old one were closed before, there might never be one.
func (c *ledgers) depose(from *ledgerServer) *ledgerServer {
	c.TB.Helper()
	before, _ := from.ledger.look()
	if err := c.Depose(from.id); err != nil {
		c.TB.Fatal(err)
	}
	for _, s := range c.servers() {
		for {
			counts, changed := s.ledger.look()
			if counts.Term > before.Term {
				break
			}
			if err := c.any([]<-chan struct{}{changed}); err != nil {
				c.TB.Fatalf("%s has not heard of another leader: %v", s.id, err)
			}
		}
	}
	return c.leader()
}

// restart closes the leader, and starts it again when another leads and stores.
func (c *ledgers) restart(from *ledgerServer) {
	c.TB.Helper()
	before, _ := from.ledger.look()
	c.mu.Lock()
	delete(c.up, from.id)
	c.turn()
	c.mu.Unlock()
	from.readers.Wait()
	if err := from.node.Close(); err != nil {
		c.TB.Fatal(err)
	}
	c.await(func(s ledgerCounts) bool { return s.Term > before.Term })

	cfg := c.Config(from.id)
	s := c.newServer(&cfg)
	var err error
	if s.node, err = node.Start(c.ctx, cfg); err != nil {
		c.TB.Fatal(err)
	}
	close(s.started)
	c.Nodes.Nodes[s.id] = s.node
	c.mu.Lock()
	c.up[s.id] = s
	c.turn()
	c.mu.Unlock()
	c.catchUp(s, c.leader())
	c.mu.Lock()
	defer c.mu.Unlock()
	s.level = true
}

// turn says that up has changed. It is called with mu held.
func (c *ledgers) turn() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// check opens every record on every server, and returns what the ledgers have counted.
func (c *ledgers) check(old keyring.KeyID) (end ledgerCounts) {
	c.TB.Helper()
	leader, active := c.leader(), c.active()
	for _, s := range c.servers() {
		c.catchUp(s, leader)
		bad := 0
		for record, ref := range c.refs {
			sealed := s.ledger.get(ref)
			got, err := s.node.Keyring().Decrypt(sealed, []byte(ref))
			id, want := underOf(sealed), text(record, c.told[record])
			if err == nil && bytes.Equal(got, want) && id == active {
				continue
			}
			if bad++; bad <= 10 {
				c.TB.Errorf("%s: %s is %q, %v, under %s; want %q under %s", s.id, ref, got, err, id, want, active)
			}
		}
		counts, _ := s.ledger.look()
		if under := len(s.ledger.refs(old)); bad > 0 || under > 0 {
			c.TB.Errorf("%s: %d records are not as they should be, %d are under the old key", s.id, bad, under)
		}
		if end.Index > 0 && counts.Moved != end.Moved {
			c.TB.Errorf("%s counts %+v, another %+v", s.id, counts, end)
		}
		if end = counts; keyring.State(keyringtest.Ring(s.keys).Key(meta.KeyID(old)).State) != keyring.StateDeprecated {
			c.TB.Errorf("%s: the old key is %s", s.id, keyringtest.Ring(s.keys).Key(meta.KeyID(old)).State)
		}
	}
	return end
}
