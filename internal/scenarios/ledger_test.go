package scenarios_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// ledger is a host's FSM: sealed records by name, with an index by key.
type ledger struct {
	keys *keyring.FSM

	mu      sync.Mutex // guards below
	changed chan struct{}
	ledgerCounts
	under map[keyring.KeyID]map[string]struct{}
}

// ledgerCounts is what a snapshot of a ledger has.
type ledgerCounts struct {
	All       map[string][]byte
	Index     uint64 // of the last command, and its term
	Term      uint64
	Moved     int // one ciphertext swapped for another
	Conflicts int // not swapped, as it was another
	Resealed  int // by a writer, what was not under the active key
}

func newLedger(keys *keyring.FSM) *ledger {
	return &ledger{
		keys: keys, changed: make(chan struct{}), ledgerCounts: ledgerCounts{All: map[string][]byte{}},
		under: map[keyring.KeyID]map[string]struct{}{},
	}
}

// Apply stores some records and returns an error for each.
func (s *ledger) Apply(l *raft.Log) any {
	var puts []keyringtest.RecordPut
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

func (s *ledger) put(p keyringtest.RecordPut) error {
	was, had := s.All[p.Ref]
	if err := s.keys.Admit(p.New); err != nil {
		return err
	}
	switch {
	case p.Old != nil && !bytes.Equal(p.Old, was):
		s.Conflicts++
		return keyringtest.ErrConflict
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

func (s *ledger) index(ref string) {
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

func (s *ledger) Snapshot() (raft.FSMSnapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	snap := s.ledgerCounts
	snap.All = maps.Clone(s.All)
	return snap, nil
}

func (s *ledger) Restore(rc io.ReadCloser) error {
	var snap ledgerCounts
	if err := errors.Join(json.NewDecoder(rc).Decode(&snap), rc.Close()); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ledgerCounts = snap
	clear(s.under)
	for ref := range s.All {
		s.index(ref)
	}
	return nil
}

func (s ledgerCounts) Persist(sink raft.SnapshotSink) error {
	return errors.Join(json.NewEncoder(sink).Encode(s), sink.Close())
}

func (ledgerCounts) Release() {}

// look returns what the ledger has counted, and a channel that is closed by the next Apply.
func (s *ledger) look() (ledgerCounts, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := s.ledgerCounts
	counts.All = nil
	return counts, s.changed
}

func (s *ledger) get(ref string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.All[ref]
}

// refs are the records under a key, in no order.
func (s *ledger) refs(id keyring.KeyID) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.AppendSeq(make([]string, 0, len(s.under[id])), maps.Keys(s.under[id]))
}

// some are a few records, under any key.
func (s *ledger) some() (refs []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref := range s.All {
		if refs = append(refs, ref); len(refs) == 8 {
			break
		}
	}
	return refs
}

// ledgerServer is a Node with a ledger, from its start to its end.
type ledgerServer struct {
	c      *ledgers
	id     raft.ServerID
	keys   *keyring.FSM
	ledger *ledger

	started chan struct{} // closed when node is set
	node    *node.Node
	readers sync.WaitGroup // Add under ledgers.mu, and while the server is there
	level   bool           // it has what it had before its restart; guarded by ledgers.mu
}

// put has the ledgers store records and returns an error for each.
func (s *ledgerServer) put(ctx context.Context, puts ...keyringtest.RecordPut) ([]error, error) {
	cmd, err := json.Marshal(puts)
	if err != nil {
		return nil, err
	}
	answer, err := s.node.Apply(ctx, cmd)
	errs, _ := answer.([]error)
	return errs, err
}

// Under yields what is under the key, and a few others before, as it may.
func (s *ledgerServer) Under(_ context.Context, id keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(yield func(keyring.Sealed, error) bool) {
		for _, ref := range append(s.ledger.some(), s.ledger.refs(id)...) {
			if !yield(keyring.Sealed{Ref: ref, Ciphertext: s.ledger.get(ref), AAD: []byte(ref)}, nil) {
				return
			}
		}
	}
}

// Replace implements keyring.SealedData. It waits for the brake, and each 16th time a writer is
// quicker with a record of the batch.
func (s *ledgerServer) Replace(ctx context.Context, batch []keyring.Replacement) (conflicts int, err error) {
	select {
	case <-s.started:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	if err := s.c.brake.wait(ctx, s.ledger); err != nil {
		return 0, err
	}
	if s.c.batches.Add(1)%16 == 1 {
		if err := s.c.overtake(ctx, batch[len(batch)/2].Ref); err != nil {
			return 0, err
		}
	}
	puts := make([]keyringtest.RecordPut, len(batch))
	for i, r := range batch {
		puts[i] = keyringtest.RecordPut{Ref: r.Ref, Old: r.Ciphertext, New: r.New}
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

func (b *brake) wait(ctx context.Context, s *ledger) error {
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

// text is what a record holds after its nth write: 100 bytes.
func text(record, n int) []byte {
	return fmt.Appendf(nil, "%-100s", fmt.Sprintf("record %d write %d", record, n))
}

// fill stores all records, under the first key.
func (c *ledgers) fill() {
	c.TB.Helper()
	for i := 0; i < len(c.refs); i += 1000 {
		err := c.led(func(s *ledgerServer) error {
			var puts []keyringtest.RecordPut
			for j := i; j < min(i+1000, len(c.refs)); j++ {
				sealed, err := s.node.Keyring().Encrypt(text(j, 0), []byte(c.refs[j]))
				if err != nil {
					return err
				}
				puts = append(puts, keyringtest.RecordPut{Ref: c.refs[j], New: sealed})
			}
			errs, err := s.put(c.ctx, puts...)
			return errors.Join(append(errs, err)...)
		})
		if err != nil {
			c.TB.Fatal(err)
		}
	}
	for _, s := range c.servers() {
		c.catchUp(s, c.leader())
	}
}

func (c *ledgers) seal(ref string) (sealed []byte) {
	c.TB.Helper()
	err := c.led(func(s *ledgerServer) (err error) {
		sealed, err = s.node.Keyring().Encrypt([]byte(ref), []byte(ref))
		return err
	})
	if err != nil {
		c.TB.Fatal(err)
	}
	return sealed
}

// store stores a record as it is.
func (c *ledgers) store(p keyringtest.RecordPut) error {
	return c.led(func(s *ledgerServer) error {
		errs, err := s.put(c.ctx, p)
		return errors.Join(append(errs, err)...)
	})
}

// write overwrites records at random, and those it is told to. Each writer has every other record.
func (c *ledgers) write(writer int, stop <-chan struct{}) {
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
		err := c.led(func(s *ledgerServer) error {
			store := func(ctx context.Context, sealed []byte) error {
				errs, err := s.put(ctx, keyringtest.RecordPut{Ref: string(ref), New: sealed})
				return errors.Join(append(errs, err)...)
			}
			return s.node.Keyring().EncryptTo(c.ctx, text(o.record, n), ref, store)
		})
		if err != nil {
			if c.ctx.Err() == nil {
				c.TB.Errorf("write %s: %v", ref, err)
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
func (c *ledgers) overtake(ctx context.Context, ref string) error {
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
func (c *ledgers) read(stop <-chan struct{}) {
	random := rand.New(rand.NewPCG(2, 0))
	for {
		s, left := c.pick(random)
		_, applied := s.ledger.look()
		wait := []<-chan struct{}{applied, s.node.Keyring().Changed(), left, stop}
		ok := c.readSome(s, random)
		s.readers.Done()
		if !ok || c.any(wait) != nil || isClosed(stop) {
			return
		}
	}
}

func (c *ledgers) readSome(s *ledgerServer, random *rand.Rand) bool {
	for range 100 {
		record := random.IntN(len(c.refs))
		ref := c.refs[record]
		got, err := s.node.Decrypt(c.ctx, s.ledger.get(ref), []byte(ref))
		if want := fmt.Sprintf("record %d write ", record); err != nil || !strings.HasPrefix(string(got), want) {
			c.TB.Errorf("read %s on %s: %q, %v", ref, s.id, got, err)
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
func (c *ledgers) pick(random *rand.Rand) (*ledgerServer, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var level []*ledgerServer
	for _, id := range slices.Sorted(maps.Keys(c.up)) {
		if c.up[id].level {
			level = append(level, c.up[id])
		}
	}
	s := level[random.IntN(len(level))]
	s.readers.Add(1)
	return s, c.changed
}
