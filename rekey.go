package keyring

// The goroutine in which the leader moves data to the active key.

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/parallel"
	"example.com/keyring/internal/plan"
)

const (
	batchRecords = 256     // in one call of Replace
	batchBytes   = 1 << 20 // of a batch, unless one record alone is more
	scanBatches  = 8       // that one scan reads: with fewer, other cores are not worth waking
	runRecords   = 64      // that a core takes at a time
)

// rekeyer is the goroutine that moves data off the keys that are rekeying, while this server leads.
// It remembers nothing that matters: a new leader scans again.
type rekeyer struct {
	*server
	clocks   *local.Clocks
	keys     recrypter
	progress progress
	asking   chan struct{} // has one while Config.Data is being asked

	inTerm uint64
	tries  map[meta.KeyID]int
	yields map[meta.KeyID]int // in a row that moved nothing
	due    map[meta.KeyID]mono.Time
	told   mono.Time // when the progress was logged
}

// plaintexts stands for a key in the place of the one that records in the clear are not sealed under. Its ID
// is zero.
var plaintexts = &meta.Key{}

// recrypter is what data is moved with: the Keyring.
type recrypter interface {
	AppendEncrypt(dst, plaintext, aad []byte) ([]byte, error)
	AppendDecrypt(dst, ciphertext, aad []byte) ([]byte, error)
	OpenNomad(key KeyID, ciphertext []byte) ([]byte, error)
}

func newRekeyer(s *server, c *local.Clocks, keys recrypter) *rekeyer {
	return &rekeyer{server: s, clocks: c, keys: keys, progress: progress{notify: s.FSM.Notify, metrics: s.cfg.Metrics}, asking: make(chan struct{}, 1)}
}

// run moves data until ctx ends.
func (r *rekeyer) run(ctx context.Context) {
	for {
		changed := r.FSM.Changed()
		if !local.Pause(ctx, changed, r.step(ctx)) {
			return
		}
	}
}

// step moves what can be moved now and returns how long there is nothing to do.
func (r *rekeyer) step(ctx context.Context) time.Duration {
	term := r.Term.Load()
	if !r.Leads(term) {
		r.progress.retainOnly(nil)
		return local.Idle
	}
	if r.inTerm != term {
		r.inTerm, r.tries, r.yields, r.due = term, map[meta.KeyID]int{}, map[meta.KeyID]int{}, map[meta.KeyID]mono.Time{}
	}
	var wake mono.Time
	ring := r.FSM.Ring()
	keys := plan.Rekeying(r.clocks.RingClock(ring).Correct(ring))
	if ring.Active() != nil && r.hasPlaintexts(ctx) {
		keys = append([]*meta.Key{plaintexts}, keys...)
	}
	r.progress.retainOnly(keys)
	r.survey(ctx, keys)
	for _, key := range keys {
		if due := r.due[key.ID]; due > mono.Now() {
			wake = mono.Earliest(wake, due)
			continue
		}
		next, err := r.move(ctx, key)
		if ctx.Err() != nil || !r.Leads(term) {
			return local.Idle
		}
		told := err
		if err == nil {
			told = r.noProgress(key.ID)
		}
		r.progress.update(key.ID, func(p *RekeyProgress) { p.Err = told })
		if err == nil {
			delete(r.tries, key.ID)
		} else {
			r.cfg.Logger.Error("could not re-encrypt data under the active key", "from", key.ID, "error", err)
			next = mono.Now().Add(plan.Backoff(r.tries[key.ID], rand.Float64()))
			r.tries[key.ID]++
		}
		r.due[key.ID] = next
		wake = mono.Earliest(wake, next)
	}
	if wake == 0 {
		return local.Idle
	}
	return min(local.Idle, max(0, mono.Until(wake)))
}

// hasPlaintexts reports whether the host says that it has records in the clear, or can't tell: then move says
// why.
func (r *rekeyer) hasPlaintexts(ctx context.Context) bool {
	c, ok := r.cfg.Data.(Counter)
	if !ok {
		return false
	}
	n, err := c.Count(ctx, KeyID(plaintexts.ID))
	return n > 0 || err != nil
}

// survey begins the progress of keys that are to be moved, also of those whose turn is not yet.
func (r *rekeyer) survey(ctx context.Context, keys []*meta.Key) {
	for _, key := range keys {
		if _, known := r.progress.of(key.ID); known {
			continue
		}
		r.progress.update(key.ID, func(*RekeyProgress) {})
		if err := r.count(ctx, key.ID); err != nil {
			r.cfg.Logger.Warn("could not count the data under a key", "key", key.ID, "error", err)
		}
	}
}

// count notes how much is left under a key, if the host can tell.
func (r *rekeyer) count(ctx context.Context, id meta.KeyID) error {
	c, ok := r.cfg.Data.(Counter)
	if !ok {
		return nil
	}
	left, err := c.Count(ctx, KeyID(id))
	if err != nil {
		return fmt.Errorf("count: %w", err)
	}
	r.progress.setLeft(id, left)
	return nil
}

// move moves what is sealed under one key to the active key. When a scan from end to end finds nothing more
// it has the key deprecated, or returns when such a scan would count. With plaintexts it seals what is in the
// clear.
func (r *rekeyer) move(ctx context.Context, key *meta.Key) (next mono.Time, err error) {
	var before string // the first record of the scan before
	all := false      // of those that scan found, the host says that they were replaced
	for {
		restores, began := r.FSM.Restores(), r.Now()
		f, err := r.scan(ctx, key)
		r.progress.setPoisoned(key.ID, f.poisoned, f.refs)
		if err == nil {
			err = r.count(ctx, key.ID)
		}
		switch {
		case err != nil:
			return 0, err
		case len(f.records) > 0:
			first := f.records[0].Ref + "\x00" + string(f.records[0].Ciphertext)
			same := first == before
			if same && all {
				return 0, fmt.Errorf("record %q is unchanged after Replace returned", f.records[0].Ref)
			}
			moved, err := r.replace(ctx, key, f.records)
			if err != nil {
				return 0, err
			}
			if moved == 0 || same {
				return r.yield(key.ID), nil // writers are at it
			}
			if before != "" { // and it is not there any more
				delete(r.yields, key.ID)
			}
			before, all = first, moved == len(f.records)
		case f.poisoned > 0:
			return 0, fmt.Errorf("%d records do not decrypt, the first of them %q: %w", f.poisoned, f.refs, ErrDecrypt)
		case key == plaintexts:
			return 0, r.sealedAll()
		case r.cfg.RekeyGrace > 0 && r.clocks.WrongClock(ctx):
			return 0, errors.New("this server can't tell whether RekeyGrace is over: its clock differs from those of most others")
		case began.Before(plan.ScanFrom(key, r.cfg.RekeyGrace)):
			return r.WhenShown(plan.ScanFrom(key, r.cfg.RekeyGrace)), nil
		default:
			return 0, r.deprecate(ctx, key.ID, restores)
		}
	}
}

// sealedAll is what a scan says that has found nothing in the clear.
func (r *rekeyer) sealedAll() error {
	if p, _ := r.progress.of(plaintexts.ID); p.Left > 0 {
		return fmt.Errorf("Config.Data counts %s in the clear, but yields none with Plain set", counted(p.Left, "record"))
	}
	r.tell("no record is in the clear any longer", plaintexts.ID)
	return nil
}

// yield is when a key is looked at again whose records others are quicker with, or do not let go of: each
// try may be an entry of raft's log.
func (r *rekeyer) yield(id meta.KeyID) mono.Time {
	wait := min(local.RetryAfter<<min(r.yields[id], 8), time.Minute)
	r.yields[id]++
	return mono.Now().Add(wait)
}

// stuckYields is after how many tries in a row that have moved nothing Status says so: five minutes. Writers
// replace each record only once in a while.
const stuckYields = 12

// noProgress is an error if nothing could be moved for long, although nothing has failed.
func (r *rekeyer) noProgress(id meta.KeyID) error {
	if n := r.yields[id]; n >= stuckYields {
		return fmt.Errorf("%d tries in a row have moved nothing: Replace reports that all records were replaced meanwhile, or Under yields them again; the leader keeps trying", n)
	}
	return nil
}

// scanResult is what one scan has found, up to a bound.
type scanResult struct {
	records  []Replacement
	bytes    int
	poisoned int
	refs     []string
}

// scan reads what is under the key until it has enough or has seen everything.
func (r *rekeyer) scan(ctx context.Context, key *meta.Key) (scanResult, error) {
	batches := scanBatches
	if r.cfg.RekeyRate > 0 {
		batches = 1 // what waits for its turn grows old
	}
	full := func(records, bytes int) bool {
		return records >= batches*batchRecords || bytes >= batches*batchBytes
	}
	var f scanResult
	done, err := r.askData(ctx)
	if err != nil {
		return f, err
	}
	defer done()
	var chunk []Sealed
	size := 0
	for s, err := range r.cfg.Data.Under(ctx, KeyID(key.ID)) {
		if err != nil {
			return f, err
		}
		if !isUnder(s, key.ID) {
			continue
		}
		chunk, size = append(chunk, s), size+len(s.Ciphertext)
		if !full(len(f.records)+len(chunk), f.bytes+size) {
			continue
		}
		if err := r.reseal(&f, key.ID, chunk); err != nil || full(len(f.records), f.bytes) {
			return f, err
		}
		chunk, size = nil, 0
	}
	return f, r.reseal(&f, key.ID, chunk)
}

// isUnder reports whether a record is sealed under the key that it was asked for by, or in the clear, for
// plaintexts.
func isUnder(s Sealed, key meta.KeyID) bool {
	if s.Plain || key == plaintexts.ID {
		return s.Plain && key == plaintexts.ID
	}
	id, err := CiphertextKeyID(s.Ciphertext)
	return s.Nomad || err == nil && id == KeyID(key)
}

// askData waits for its turn to ask Config.Data, which answers one question at a time.
func (r *rekeyer) askData(ctx context.Context) (done func(), err error) {
	select {
	case r.asking <- struct{}{}:
		return func() { <-r.asking }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// reseal opens records and seals them under the active key, on all cores. Those that do not open
// are poisoned; any other error is not about the record.
func (r *rekeyer) reseal(f *scanResult, key meta.KeyID, chunk []Sealed) error {
	sealed, errs := make([][]byte, len(chunk)), make([]error, len(chunk))
	parallel.Do((len(chunk)+runRecords-1)/runRecords, func(run int) {
		from, to := run*runRecords, min(len(chunk), (run+1)*runRecords)
		size := 0
		for _, s := range chunk[from:to] {
			size += len(s.Ciphertext) // and it is as long when re-encrypted
			if s.Plain {
				size += Overhead
			}
		}
		all, buf := make([]byte, 0, size), []byte(nil)
		for i := from; i < to; i++ {
			var plaintext []byte
			if plaintext, errs[i] = r.open(buf[:0], key, chunk[i]); errs[i] != nil {
				continue
			}
			start := len(all)
			if all, errs[i] = r.keys.AppendEncrypt(all, plaintext, chunk[i].AAD); errs[i] == nil {
				sealed[i] = all[start:len(all):len(all)]
			}
			clear(plaintext)
			buf = plaintext
		}
	})
	f.records = slices.Grow(f.records, len(chunk))
	for i, s := range chunk {
		switch {
		case errs[i] == nil:
			f.records = append(f.records, Replacement{s, sealed[i]})
			f.bytes += len(s.Ciphertext)
		case errors.Is(errs[i], ErrDecrypt):
			if f.poisoned++; len(f.refs) < poisonedRefs {
				f.refs = append(f.refs, s.Ref)
			}
		default:
			return errs[i]
		}
	}
	return nil
}

// open opens a record that is under the key.
func (r *rekeyer) open(dst []byte, key meta.KeyID, s Sealed) ([]byte, error) {
	switch {
	case s.Plain:
		return append(dst, s.Ciphertext...), nil // a copy: who opens it overwrites it
	case s.Nomad:
		return r.keys.OpenNomad(KeyID(key), s.Ciphertext)
	}
	return r.keys.AppendDecrypt(dst, s.Ciphertext, s.AAD)
}

// replace hands records to the host, in batches, and returns how many were replaced.
func (r *rekeyer) replace(ctx context.Context, key *meta.Key, records []Replacement) (moved int, err error) {
	for len(records) > 0 {
		n := replaceable(records)
		m, err := r.replaceBatch(ctx, key, records[:n])
		if err != nil {
			return moved, err
		}
		records, moved = records[n:], moved+m
	}
	return moved, nil
}

// replaceable returns how many of the records go together, at least one.
func replaceable(records []Replacement) (n int) {
	size := 0
	for i, r := range records[:min(len(records), batchRecords)] {
		if size += len(r.Ciphertext); i > 0 && size > batchBytes {
			return i
		}
		n++
	}
	return n
}

func (r *rekeyer) replaceBatch(ctx context.Context, key *meta.Key, records []Replacement) (moved int, err error) {
	began := mono.Now()
	done, err := r.askData(ctx)
	if err != nil {
		return 0, err
	}
	conflicts, err := r.cfg.Data.Replace(ctx, records)
	done()
	if err != nil {
		return 0, fmt.Errorf("replace: %w", err)
	}
	moved = len(records) - conflicts
	r.progress.addBatch(key.ID, moved, conflicts)
	if err := r.count(ctx, key.ID); err != nil {
		return 0, err
	}
	if mono.Now().Sub(r.told) >= time.Minute {
		r.tell("re-encrypting data under the active key", key.ID)
	}
	if r.cfg.RekeyRate > 0 {
		return moved, local.Sleep(ctx, began.Add(time.Duration(len(records))*time.Second/time.Duration(r.cfg.RekeyRate)))
	}
	return moved, nil
}

// tell logs the progress of a key.
func (r *rekeyer) tell(what string, id meta.KeyID) {
	p, _ := r.progress.of(id)
	r.cfg.Logger.Info(what, "key", id, "moved", p.Moved, "conflicts", p.Conflicts, "left", p.Left)
	r.told = mono.Now()
}

// deprecate deprecates a key under which a scan has found nothing. The fence lets nothing be sealed
// under it after that; only a snapshot that is restored can bring something back. So the scan is
// recorded first: if no snapshot was restored before that, one that is restored later is either
// from before, and has not got the record that Deprecate names, or it has nothing under the key.
func (r *rekeyer) deprecate(ctx context.Context, id meta.KeyID, restores uint64) error {
	if err := r.Propose(ctx, meta.Command{Clean: &meta.Clean{ID: id}}); err != nil {
		return err
	}
	key := r.FSM.Ring().Key(id)
	if key == nil || r.FSM.Restores() != restores {
		return nil // look again
	}
	r.tell("no data is encrypted under the key any longer", id)
	return r.Propose(ctx, meta.Command{Deprecate: &meta.Deprecate{ID: id, Clean: key.Clean}})
}
