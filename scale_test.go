package keyring_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

var scale = flag.Int("records", 20_000, "records that are moved through changes of the leader")

// TestRecordsMoveOnceThroughLeaderChanges: three Nodes, two writers, a reader, and a leader that is
// deposed or closed again and again. The log decides what was moved: what each server's FSM counts
// in Apply is part of its state.
func TestRecordsMoveOnceThroughLeaderChanges(t *testing.T) {
	const changes = 10
	records := *scale
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	c := startShelves(ctx, t, records)
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
	keyring.AwaitHolders(c.leader().node.Keyring(), key.ID, 3) // so that any of them can be closed

	for n := range changes {
		due := share * (n + 1)
		c.brake.allow(due + ahead)
		c.await(func(s shelved) bool { return s.Moved >= due })
		leader := c.leader()
		if n%2 == 0 { // it comes back with a snapshot, or with the log alone
			if err := keyring.SnapshotRaft(leader.node); err != nil {
				t.Fatal(err)
			}
		}
		if n%3 == 0 { // it is deposed first, under load
			if err := keyring.Depose(leader.node); err != nil {
				t.Fatal(err)
			}
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

	if err := c.store(recordPut{Ref: "late", New: late}); !errors.Is(err, keyring.ErrStaleKey) {
		t.Errorf("sealed before the rotation, stored after the last scan: %v", err)
	}
	end := c.check(old)
	t.Logf("%d records, filled in %v, moved in %v", records, filled, moved)
	t.Logf("%d moves, %d by writers, %d conflicts", end.Moved, end.Resealed, end.Conflicts)
	t.Logf("%d batches cut short", c.cut.Load())
	t.Logf("%d changes of the leader, term %d, %d writes, %d reads", changes, end.Term, c.writes.Load(), c.reads.Load())
	left := records - end.Resealed // to the rekey
	if end.Moved != left {
		t.Errorf("%d moves of %d records that no writer had sealed anew", end.Moved, left)
	}
	if tries := end.Moved + end.Conflicts; end.Conflicts == 0 || tries > left*105/100 {
		t.Errorf("%d moves tried of %d records, %d of them conflicts", tries, left, end.Conflicts)
	}
	if int(c.writes.Load()) < records/1000 || int(c.reads.Load()) < records/10 {
		t.Errorf("%d writes, %d reads: that is no load", c.writes.Load(), c.reads.Load())
	}
}

// ahead is how many records may be moved while the leader is being changed.
const ahead = 6 * 256

// shelf is a host's FSM: sealed records by name, with an index by key.
type shelf struct {
	keys *keyring.FSM

	mu      sync.Mutex // guards below
	changed chan struct{}
	shelved
	under map[keyring.KeyID]map[string]struct{}
}

// shelved is what a snapshot of a shelf has.
type shelved struct {
	All       map[string][]byte
	Index     uint64 // of the last command, and its term
	Term      uint64
	Moved     int // one ciphertext swapped for another
	Conflicts int // not swapped, as it was another
	Resealed  int // by a writer, what was not under the active key
}

func newShelf(keys *keyring.FSM) *shelf {
	return &shelf{
		keys: keys, changed: make(chan struct{}), shelved: shelved{All: map[string][]byte{}},
		under: map[keyring.KeyID]map[string]struct{}{},
	}
}

// Apply stores some records and returns an error for each.
func (s *shelf) Apply(l *raft.Log) any {
	var puts []recordPut
	if err := json.Unmarshal(l.Data, &puts); err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Index, s.Term = l.Index, l.Term
	errs := make([]error, len(puts))
	for i, p := range puts {
		errs[i] = s.put(p)
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return errs
}

func (s *shelf) put(p recordPut) error {
	was, had := s.All[p.Ref]
	if err := s.keys.Admit(p.New); err != nil {
		return err
	}
	switch {
	case p.Old != nil && !bytes.Equal(p.Old, was):
		s.Conflicts++
		return errConflict
	case p.Old != nil:
		s.Moved++
	case had && s.keys.Admit(was) != nil:
		s.Resealed++
	}
	if had {
		delete(s.under[underOf(was)], p.Ref)
	}
	s.All[p.Ref] = p.New
	s.index(p.Ref)
	return nil
}

func (s *shelf) index(ref string) {
	id := underOf(s.All[ref])
	if s.under[id] == nil {
		s.under[id] = map[string]struct{}{}
	}
	s.under[id][ref] = struct{}{}
}

func underOf(ciphertext []byte) keyring.KeyID {
	id, _ := keyring.CiphertextKeyID(ciphertext)
	return id
}

func (s *shelf) Snapshot() (raft.FSMSnapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	snap := s.shelved
	snap.All = maps.Clone(s.All)
	return snap, nil
}

func (s *shelf) Restore(rc io.ReadCloser) error {
	var snap shelved
	if err := errors.Join(json.NewDecoder(rc).Decode(&snap), rc.Close()); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shelved = snap
	clear(s.under)
	for ref := range s.All {
		s.index(ref)
	}
	return nil
}

func (s shelved) Persist(sink raft.SnapshotSink) error {
	return errors.Join(json.NewEncoder(sink).Encode(s), sink.Close())
}

func (shelved) Release() {}

// look returns what the shelf has counted, and a channel that is closed by the next Apply.
func (s *shelf) look() (shelved, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := s.shelved
	counts.All = nil
	return counts, s.changed
}

func (s *shelf) get(ref string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.All[ref]
}

// refs are the records under a key, in no order.
func (s *shelf) refs(id keyring.KeyID) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.AppendSeq(make([]string, 0, len(s.under[id])), maps.Keys(s.under[id]))
}

// some are a few records, under any key.
func (s *shelf) some() (refs []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref := range s.All {
		if refs = append(refs, ref); len(refs) == 8 {
			break
		}
	}
	return refs
}

// shelfServer is a Node with a shelf, from its start to its end.
type shelfServer struct {
	c     *shelves
	id    raft.ServerID
	keys  *keyring.FSM
	shelf *shelf

	started chan struct{} // closed when node is set
	node    *keyring.Node
	readers sync.WaitGroup // Add under shelves.mu, and while the server is there
	level   bool           // it has what it had before its restart; guarded by shelves.mu
}

// put has the shelves store records and returns an error for each.
func (s *shelfServer) put(ctx context.Context, puts ...recordPut) ([]error, error) {
	cmd, err := json.Marshal(puts)
	if err != nil {
		return nil, err
	}
	answer, err := s.node.Apply(ctx, cmd)
	errs, _ := answer.([]error)
	return errs, err
}

// Under yields what is under the key, and a few others before, as it may.
func (s *shelfServer) Under(_ context.Context, id keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(yield func(keyring.Sealed, error) bool) {
		for _, ref := range append(s.shelf.some(), s.shelf.refs(id)...) {
			if !yield(keyring.Sealed{Ref: ref, Ciphertext: s.shelf.get(ref), AAD: []byte(ref)}, nil) {
				return
			}
		}
	}
}

// Replace implements keyring.SealedData. It waits for the brake, and each 16th time a writer is
// quicker with a record of the batch.
func (s *shelfServer) Replace(ctx context.Context, batch []keyring.Replacement) (conflicts int, err error) {
	select {
	case <-s.started:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	if err := s.c.brake.wait(ctx, s.shelf); err != nil {
		return 0, err
	}
	if s.c.batches.Add(1)%16 == 1 {
		if err := s.c.overtake(ctx, batch[len(batch)/2].Ref); err != nil {
			return 0, err
		}
	}
	puts := make([]recordPut, len(batch))
	for i, r := range batch {
		puts[i] = recordPut{r.Ref, r.Ciphertext, r.New}
	}
	errs, err := s.put(ctx, puts...)
	if err != nil {
		s.c.cut.Add(1)
	}
	for _, err := range errs {
		if err != nil {
			conflicts++
		}
	}
	return conflicts, err
}

// brake holds the rekey when it has moved as much as it may.
type brake struct {
	mu      sync.Mutex // guards below
	most    int
	changed chan struct{}
}

func (b *brake) allow(most int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.most = most
	if b.changed != nil {
		close(b.changed)
	}
	b.changed = make(chan struct{})
}

func (b *brake) wait(ctx context.Context, s *shelf) error {
	for {
		b.mu.Lock()
		most, changed := b.most, b.changed
		b.mu.Unlock()
		if counts, _ := s.look(); counts.Moved < most {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// shelves are three Nodes with shelves.
type shelves struct {
	*nodes
	ctx    context.Context
	refs   []string
	told   []int // the last write that was said to be stored, by record; each of one writer
	orders [2]chan order
	brake  brake
	load   sync.WaitGroup

	batches, cut, writes, reads atomic.Int64

	mu      sync.Mutex // guards below
	up      map[raft.ServerID]*shelfServer
	changed chan struct{} // closed when up changes
}

// order has a writer write that record now.
type order struct {
	record int
	done   chan struct{}
}

func startShelves(ctx context.Context, t *testing.T, records int) *shelves {
	c := &shelves{
		ctx: ctx, told: make([]int, records), orders: [2]chan order{make(chan order), make(chan order)},
		up: map[raft.ServerID]*shelfServer{}, changed: make(chan struct{}),
	}
	for i := range records {
		c.refs = append(c.refs, fmt.Sprintf("record/%06d", i))
	}
	c.nodes = startNodes(t, 3, func(cfg *keyring.NodeConfig) { c.up[cfg.ID] = c.newServer(cfg) })
	for id, s := range c.up {
		s.node, s.level = c.nodes.nodes[id], true
		close(s.started)
	}
	c.ready(ctx)
	return c
}

// newServer completes the configuration of a server that is about to start.
func (c *shelves) newServer(cfg *keyring.NodeConfig) *shelfServer {
	s := &shelfServer{c: c, id: cfg.ID, keys: keyring.NewFSM()}
	s.started = make(chan struct{})
	s.shelf = newShelf(s.keys)
	cfg.App, cfg.Keys, cfg.Data, cfg.Rotation.Every = s.shelf, s.keys, s, -1
	return s
}

// servers returns those that are up.
func (c *shelves) servers() []*shelfServer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.up))
}

// led has the leader do something, and the next one if it does not lead any more.
func (c *shelves) led(do func(*shelfServer) error) error {
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
func (c *shelves) any(wait []<-chan struct{}) error {
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
func (c *shelves) leader() (leader *shelfServer) {
	c.tb.Helper()
	if err := c.led(func(s *shelfServer) error { leader = s; return nil }); err != nil {
		c.tb.Fatal("no leader: ", err)
	}
	return leader
}

// await waits until a shelf has counted enough.
func (c *shelves) await(enough func(shelved) bool) {
	c.tb.Helper()
	for {
		var wait []<-chan struct{}
		var counts shelved
		for _, s := range c.servers() {
			var changed <-chan struct{}
			if counts, changed = s.shelf.look(); enough(counts) {
				return
			}
			wait = append(wait, changed)
		}
		if err := c.any(wait); err != nil {
			c.tb.Fatalf("there is no more than %+v: %v", counts, err)
		}
	}
}

// catchUp waits until a shelf has applied all that another has.
func (c *shelves) catchUp(s, with *shelfServer) {
	c.tb.Helper()
	for want, _ := with.shelf.look(); ; {
		counts, changed := s.shelf.look()
		if counts.Index >= want.Index {
			return
		}
		if err := c.any([]<-chan struct{}{changed}); err != nil {
			c.tb.Fatalf("%s has %d, not %d: %v", s.id, counts.Index, want.Index, err)
		}
	}
}

func (c *shelves) awaitState(s *shelfServer, id keyring.KeyID, want keyring.State) {
	c.tb.Helper()
	for {
		changed := s.node.Keyring().Changed()
		state := keyring.Ring(s.keys).Key(id).State
		if state == want {
			return
		}
		if err := c.any([]<-chan struct{}{changed}); err != nil {
			counts, _ := s.shelf.look()
			c.tb.Fatalf("%s: the key is %s after %d moves and not %s: %v", s.id, state, counts.Moved, want, err)
		}
	}
}

func (c *shelves) active() keyring.KeyID {
	return keyring.Ring(c.leader().keys).Active().ID
}

// restart closes the leader, and starts it again when another leads and stores.
func (c *shelves) restart(from *shelfServer) {
	c.tb.Helper()
	before, _ := from.shelf.look()
	c.mu.Lock()
	delete(c.up, from.id)
	c.turn()
	c.mu.Unlock()
	from.readers.Wait()
	if err := from.node.Close(); err != nil {
		c.tb.Fatal(err)
	}
	c.await(func(s shelved) bool { return s.Term > before.Term })

	cfg := c.config(from.id)
	s := c.newServer(&cfg)
	var err error
	if s.node, err = keyring.Start(c.ctx, cfg); err != nil {
		c.tb.Fatal(err)
	}
	close(s.started)
	c.nodes.nodes[s.id] = s.node
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
func (c *shelves) turn() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// text is what a record holds after its nth write: 100 bytes.
func text(record, n int) []byte {
	return fmt.Appendf(nil, "%-100s", fmt.Sprintf("record %d write %d", record, n))
}

// fill stores all records, under the first key.
func (c *shelves) fill() {
	c.tb.Helper()
	for i := 0; i < len(c.refs); i += 1000 {
		err := c.led(func(s *shelfServer) error {
			var puts []recordPut
			for j := i; j < min(i+1000, len(c.refs)); j++ {
				sealed, err := s.node.Keyring().Encrypt(text(j, 0), []byte(c.refs[j]))
				if err != nil {
					return err
				}
				puts = append(puts, recordPut{Ref: c.refs[j], New: sealed})
			}
			errs, err := s.put(c.ctx, puts...)
			return errors.Join(append(errs, err)...)
		})
		if err != nil {
			c.tb.Fatal(err)
		}
	}
	for _, s := range c.servers() {
		c.catchUp(s, c.leader())
	}
}

func (c *shelves) seal(ref string) (sealed []byte) {
	c.tb.Helper()
	err := c.led(func(s *shelfServer) (err error) {
		sealed, err = s.node.Keyring().Encrypt([]byte(ref), []byte(ref))
		return err
	})
	if err != nil {
		c.tb.Fatal(err)
	}
	return sealed
}

// store stores a record as it is.
func (c *shelves) store(p recordPut) error {
	return c.led(func(s *shelfServer) error {
		errs, err := s.put(c.ctx, p)
		return errors.Join(append(errs, err)...)
	})
}

// write overwrites records at random, and those it is told to. Each writer has every other record.
func (c *shelves) write(writer int, stop <-chan struct{}) {
	random := rand.New(rand.NewPCG(uint64(writer), 0))
	for {
		o := order{record: 2*random.IntN(len(c.refs)/2) + writer}
		select {
		case <-stop:
			return
		case <-c.ctx.Done():
			return
		case o = <-c.orders[writer]:
		default:
		}
		ref, n := []byte(c.refs[o.record]), c.told[o.record]+1
		err := c.led(func(s *shelfServer) error {
			store := func(ctx context.Context, sealed []byte) error {
				errs, err := s.put(ctx, recordPut{Ref: string(ref), New: sealed})
				return errors.Join(append(errs, err)...)
			}
			return s.node.Keyring().EncryptTo(c.ctx, text(o.record, n), ref, store)
		})
		if err != nil {
			if c.ctx.Err() == nil {
				c.tb.Errorf("write %s: %v", ref, err)
			}
			return
		}
		c.told[o.record] = n
		c.writes.Add(1)
		if o.done != nil {
			close(o.done)
		}
	}
}

// overtake has the writer of a record write it, and waits.
func (c *shelves) overtake(ctx context.Context, ref string) error {
	record, _ := slices.BinarySearch(c.refs, ref)
	o := order{record, make(chan struct{})}
	select {
	case c.orders[record%2] <- o:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-o.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// read opens records at random on servers at random, again and again: a few each time a server has
// applied something or sees who leads.
func (c *shelves) read(stop <-chan struct{}) {
	random := rand.New(rand.NewPCG(2, 0))
	for {
		s, left := c.pick(random)
		_, applied := s.shelf.look()
		wait := []<-chan struct{}{applied, s.node.Keyring().Changed(), left, stop}
		ok := c.readSome(s, random)
		s.readers.Done()
		if !ok || c.any(wait) != nil || isClosed(stop) {
			return
		}
	}
}

func (c *shelves) readSome(s *shelfServer, random *rand.Rand) bool {
	for range 100 {
		record := random.IntN(len(c.refs))
		ref := c.refs[record]
		got, err := s.node.Decrypt(c.ctx, s.shelf.get(ref), []byte(ref))
		if want := fmt.Sprintf("record %d write ", record); err != nil || !strings.HasPrefix(string(got), want) {
			c.tb.Errorf("read %s on %s: %q, %v", ref, s.id, got, err)
			return false
		}
		c.reads.Add(1)
	}
	return true
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// pick returns a server that is not closed before its readers are done, and a channel that is closed
// when that, or another, is about to be.
func (c *shelves) pick(random *rand.Rand) (*shelfServer, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var level []*shelfServer
	for _, id := range slices.Sorted(maps.Keys(c.up)) {
		if c.up[id].level {
			level = append(level, c.up[id])
		}
	}
	s := level[random.IntN(len(level))]
	s.readers.Add(1)
	return s, c.changed
}

// check opens every record on every server, and returns what the shelves have counted.
func (c *shelves) check(old keyring.KeyID) (end shelved) {
	c.tb.Helper()
	leader, active := c.leader(), c.active()
	for _, s := range c.servers() {
		c.catchUp(s, leader)
		bad := 0
		for record, ref := range c.refs {
			sealed := s.shelf.get(ref)
			got, err := s.node.Keyring().Decrypt(sealed, []byte(ref))
			id, want := underOf(sealed), text(record, c.told[record])
			if err == nil && bytes.Equal(got, want) && id == active {
				continue
			}
			if bad++; bad <= 10 {
				c.tb.Errorf("%s: %s is %q, %v, under %s; want %q under %s", s.id, ref, got, err, id, want, active)
			}
		}
		counts, _ := s.shelf.look()
		if under := len(s.shelf.refs(old)); bad > 0 || under > 0 {
			c.tb.Errorf("%s: %d records are not as they should be, %d are under the old key", s.id, bad, under)
		}
		if end.Index > 0 && counts.Moved != end.Moved {
			c.tb.Errorf("%s counts %+v, another %+v", s.id, counts, end)
		}
		if end = counts; keyring.Ring(s.keys).Key(old).State != keyring.StateDeprecated {
			c.tb.Errorf("%s: the old key is %s", s.id, keyring.Ring(s.keys).Key(old).State)
		}
	}
	return end
}
