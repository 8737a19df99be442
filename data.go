package keyring

// The ciphertexts of the host: SealedData, and the progress of re-encrypting them.

import (
	"context"
	"iter"
	"slices"
	"sync"

	"example.com/keyring/internal/meta"
)

// Sealed is one encrypted record of the host.
type Sealed struct {
	// Ref names the record, for Replace and for people.
	Ref string
	// Ciphertext is a result of Encrypt, and AAD is the aad of that call.
	Ciphertext, AAD []byte
	// Nomad says that Ciphertext has the format of OpenNomad and is encrypted under the key that Under was
	// called with. It is re-encrypted by Encrypt, with AAD.
	Nomad bool
	// Plain says that Ciphertext is a plaintext, from before the host had a keyring. Once a key is active the
	// leader encrypts it with AAD.
	Plain bool
}

// Replacement is a record whose plaintext is encrypted again, under the active key. New shares its memory
// with other records: a host that keeps New itself must copy it.
type Replacement struct {
	Sealed
	New []byte
}

// SealedData lets the leader find the host's ciphertexts and replace them. The Map of package records
// implements it for a host whose records are in its own raft. The methods are called on the leader only, one
// at a time. They must return when ctx ends, because Close waits for them. Neither side changes the bytes
// that the other gave it.
type SealedData interface {
	// Under yields each record that is encrypted under the key at the time of the call, in any order. It may
	// yield other records, which are skipped, so a host without an index yields all of them. An error ends
	// the scan, which is repeated later. Under reads what this server's FSM has applied, or the store that
	// the host's writers use. It must not miss a record: a scan that yields no record of the key proves that
	// the key can be removed. Data that Nomad encrypted under an adopted key counts as well.
	//
	// For the zero KeyID, Under yields the records in the clear, with Plain set. It is called so only on a
	// Counter that says that there are some.
	Under(ctx context.Context, key KeyID) iter.Seq2[Sealed, error]
	// Replace replaces each record whose whole ciphertext is still the old one. A record that has changed
	// meanwhile, or that Admit rejects, is a conflict: a writer has already re-encrypted it. A batch has at
	// most 256 records and 1 MiB of ciphertexts, or one longer record. Replace is never called while Under
	// iterates. When it has returned, Under yields the new ciphertexts.
	Replace(ctx context.Context, batch []Replacement) (conflicts int, err error)
}

// Counter is for a SealedData that can cheaply count the records under a key: RekeyProgress then says how
// many are left. For the zero KeyID it counts the records in the clear: see Sealed.Plain. The leader asks for
// that count whenever the keyring changes. A host that gets such records in between calls Notify. Count is
// safe for concurrent use.
type Counter interface {
	Count(ctx context.Context, key KeyID) (int, error)
}

// NoData is the SealedData of a host that stores no ciphertexts.
type NoData struct{}

// Under yields nothing.
func (NoData) Under(context.Context, KeyID) iter.Seq2[Sealed, error] {
	return func(func(Sealed, error) bool) {}
}

// Replace is never called.
func (NoData) Replace(context.Context, []Replacement) (int, error) { return 0, nil }

// RekeyProgress says how far this leader has re-encrypted the data under one key. A new leader starts at
// zero. Config.Metrics receives the same numbers.
type RekeyProgress struct {
	Key       KeyID `json:"key"`       // zero for records in the clear: see Sealed.Plain
	Moved     int   `json:"moved"`     // records that were replaced
	Conflicts int   `json:"conflicts"` // records that a writer had replaced first
	// Left is the number of records that are still under the key. It is negative if Config.Data is no
	// Counter.
	Left int `json:"left"`
	// Poisoned is the number of records that the last scan could not decrypt, and PoisonedRefs names the
	// first of them. While there are any, the key stays rekeying: replace them, or remove the key by force.
	// The scan is repeated after 100 ms, then after pauses that double up to a minute.
	Poisoned     int      `json:"poisoned"`
	PoisonedRefs []string `json:"poisonedRefs"`
	// Err says why the last attempt ended early, or that many attempts in a row re-encrypted nothing. Nil is
	// neither. Status.Problems has it too.
	Err error `json:"-"`
}

const poisonedRefs = 16 // named in RekeyProgress

// progress is how far the data of each key has been moved, for Status and for metrics.
type progress struct {
	notify  func() // wakes who waits for a change
	metrics Metrics

	mu   sync.Mutex // guards below
	keys map[meta.KeyID]*RekeyProgress
}

// update changes the progress of a key.
func (g *progress) update(id meta.KeyID, change func(*RekeyProgress)) {
	g.edit(id, change)
	g.notify()
}

func (g *progress) edit(id meta.KeyID, change func(*RekeyProgress)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.keys == nil {
		g.keys = map[meta.KeyID]*RekeyProgress{}
	}
	if g.keys[id] == nil {
		g.keys[id] = unbegun(id)
	}
	change(g.keys[id])
}

// unbegun is the progress of a key of which nothing is known.
func unbegun(id meta.KeyID) *RekeyProgress { return &RekeyProgress{Key: KeyID(id), Left: -1} }

// addBatch counts a batch.
func (g *progress) addBatch(id meta.KeyID, moved, conflicts int) {
	g.update(id, func(p *RekeyProgress) { p.Moved, p.Conflicts = p.Moved+moved, p.Conflicts+conflicts })
	g.metrics.AddCounter("keyring.rekey.moved", float64(moved), keyLabel(id))
	g.metrics.AddCounter("keyring.rekey.conflicts", float64(conflicts), keyLabel(id))
}

// setLeft notes how many records are left under a key.
func (g *progress) setLeft(id meta.KeyID, left int) {
	g.update(id, func(p *RekeyProgress) { p.Left = left })
	g.metrics.SetGauge("keyring.rekey.left", float64(left), keyLabel(id))
}

// of returns the progress of a key, and whether there is any.
func (g *progress) of(id meta.KeyID) (p RekeyProgress, known bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.keys[id] != nil {
		return *g.keys[id], true
	}
	return p, false
}

// setPoisoned notes what a scan has found that does not open.
func (g *progress) setPoisoned(id meta.KeyID, n int, refs []string) {
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
func (g *progress) drop(keys []*meta.Key) (dropped []meta.KeyID) {
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
	if g.keys[meta.KeyID{}] != nil {
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
