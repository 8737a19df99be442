package keyring

// The data of the host that is sealed under keys: SealedData, EncryptTo, and the progress of moving it.

import (
	"context"
	"iter"
	"slices"
	"sync"

	"example.com/keyring/internal/meta"
)

// Sealed is one record of the host's.
type Sealed struct {
	// Ref names the record, for Replace and for people.
	Ref string
	// Ciphertext is what Encrypt returned, and AAD what it was given.
	Ciphertext, AAD []byte
	// Nomad says that Ciphertext is data as OpenNomad takes it, sealed under the key that Under was
	// asked for. It is re-encrypted as Encrypt does, with AAD.
	Nomad bool
	// Plain says that Ciphertext is a plaintext: the host had the record in the clear before it had a keyring. Once a key is
	// active the leader seals it with AAD.
	Plain bool
}

// Replacement is a record with the same plaintext sealed under the active key. New shares its memory
// with other records: a host that keeps it, not what it made of it for raft, keeps a copy.
type Replacement struct {
	Sealed
	New []byte
}

// SealedData is how the leader finds what the host has sealed, and has it replaced. The Map of package records is one, for
// a host whose records are in its own raft. Its methods
// are called on the leader only, one at a time, and end when ctx does, as Close waits for them.
// Neither side changes the bytes that the other gave it.
type SealedData interface {
	// Under yields each record that is sealed under the key at the time of the call, in any
	// order. It may yield others, which are passed over, so a host without an index yields
	// everything. An error ends the scan, which is repeated later. It reads what this server's
	// FSM has applied, or whatever the host's writers have reached, and must not miss a record:
	// a scan that yields none under the key is the proof that the key can go. What Nomad sealed
	// under an adopted key belongs to it too. For the zero KeyID it yields the records in the clear, with Plain set: that is
	// asked only of a Counter that says that there are some.
	Under(ctx context.Context, key KeyID) iter.Seq2[Sealed, error]
	// Replace swaps each record whose whole ciphertext is still the old one. What changed
	// meanwhile, or what Admit refuses, is a conflict: the writer has already re-encrypted it. A batch
	// has at most 256 records and 1 MiB of ciphertexts, or else one record that is longer. Replace is
	// never called while Under iterates, and when it returns, Under yields the new ciphertexts.
	Replace(ctx context.Context, batch []Replacement) (conflicts int, err error)
}

// Counter is for a SealedData that can tell at little cost how many records are sealed under a
// key: RekeyProgress then says how many are left. For the zero KeyID it tells how many are in the clear, see Sealed.Plain: the
// leader asks that whenever the keyring changes, and a host that gets such records in between calls Notify. It is safe for
// concurrent use.
type Counter interface {
	Count(ctx context.Context, key KeyID) (int, error)
}

// NoData is for a host that keeps nothing it has sealed.
type NoData struct{}

// Under yields nothing.
func (NoData) Under(context.Context, KeyID) iter.Seq2[Sealed, error] {
	return func(func(Sealed, error) bool) {}
}

// Replace is never called.
func (NoData) Replace(context.Context, []Replacement) (int, error) { return 0, nil }

// RekeyProgress is how far the data under one key has been moved to the active key, by this
// leader: a new one begins to count from zero. Config.Metrics receives the same.
type RekeyProgress struct {
	Key       KeyID `json:"key"`       // zero for records in the clear, which are sealed: see Sealed.Plain
	Moved     int   `json:"moved"`     // records that were replaced
	Conflicts int   `json:"conflicts"` // records that somebody else had replaced
	// Left is how many records are still under the key, negative if Config.Data is no Counter.
	Left int `json:"left"`
	// Poisoned is how many records do not open, by the last scan, and PoisonedRefs the first of
	// them. They keep the key in rekeying: replace them, or remove the key by force. The scan is
	// repeated after 100 ms, and then after pauses that double to a minute.
	Poisoned     int      `json:"poisoned"`
	PoisonedRefs []string `json:"poisonedRefs"`
	Err          error    `json:"-"` // why the last attempt ended early, or that many in a row have moved nothing, or nil; Problems has it too
}

const poisonedRefs = 16 // named in RekeyProgress

// progress is how far the data of each key has been moved, for Status and for metrics.
type progress struct {
	notify  func() // wakes who waits for a change
	metrics Metrics

	mu   sync.Mutex // guards below
	keys map[KeyID]*RekeyProgress
}

// update changes the progress of a key.
func (g *progress) update(id KeyID, change func(*RekeyProgress)) {
	g.edit(id, change)
	g.notify()
}

func (g *progress) edit(id KeyID, change func(*RekeyProgress)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.keys == nil {
		g.keys = map[KeyID]*RekeyProgress{}
	}
	if g.keys[id] == nil {
		g.keys[id] = unbegun(id)
	}
	change(g.keys[id])
}

// unbegun is the progress of a key of which nothing is known.
func unbegun(id KeyID) *RekeyProgress { return &RekeyProgress{Key: id, Left: -1} }

// addBatch counts a batch.
func (g *progress) addBatch(id KeyID, moved, conflicts int) {
	g.update(id, func(p *RekeyProgress) { p.Moved, p.Conflicts = p.Moved+moved, p.Conflicts+conflicts })
	g.metrics.AddCounter("keyring.rekey.moved", float64(moved), keyLabel(id))
	g.metrics.AddCounter("keyring.rekey.conflicts", float64(conflicts), keyLabel(id))
}

// setLeft notes how many records are left under a key.
func (g *progress) setLeft(id KeyID, left int) {
	g.update(id, func(p *RekeyProgress) { p.Left = left })
	g.metrics.SetGauge("keyring.rekey.left", float64(left), keyLabel(id))
}

// of returns the progress of a key, and whether there is any.
func (g *progress) of(id KeyID) (p RekeyProgress, known bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.keys[id] != nil {
		return *g.keys[id], true
	}
	return p, false
}

// setPoisoned notes what a scan has found that does not open.
func (g *progress) setPoisoned(id KeyID, n int, refs []string) {
	g.update(id, func(p *RekeyProgress) { p.Poisoned, p.PoisonedRefs = n, refs })
	g.metrics.SetGauge("keyring.rekey.poisoned", float64(n), keyLabel(id))
}

// retainOnly forgets all but these keys.
func (g *progress) retainOnly(keys []*meta.Key) {
	dropped := g.drop(keys)
	for _, id := range dropped {
		g.metrics.SetGauge("keyring.rekey.left", 0, keyLabel(id)) // it is another leader's to say, or there is nothing
		g.metrics.SetGauge("keyring.rekey.poisoned", 0, keyLabel(id))
	}
	if len(dropped) > 0 {
		g.notify()
	}
}

// drop forgets all but these keys, and returns which.
func (g *progress) drop(keys []*meta.Key) (dropped []KeyID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for id := range g.keys {
		if !slices.ContainsFunc(keys, func(k *meta.Key) bool { return k.ID == id }) {
			delete(g.keys, id)
			dropped = append(dropped, id)
		}
	}
	return dropped
}

// status is the progress of the keys that are rekeying, after that of records in the clear if there are any.
func (g *progress) status(rekeying []*meta.Key) (all []RekeyProgress) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.keys[KeyID{}] != nil {
		rekeying = append([]*meta.Key{plaintexts}, rekeying...)
	}
	for _, key := range rekeying {
		p := g.keys[key.ID]
		if p == nil {
			p = unbegun(key.ID)
		}
		c := *p
		c.PoisonedRefs = slices.Clone(p.PoisonedRefs)
		all = append(all, c)
	}
	return all
}
