package keyring

// How far a rekey is, for Status and metrics.

import (
	"slices"
	"sync"

	"example.com/keyring/internal/meta"
)

// RekeyProgress is how far the data under one key has been moved to the active key, by this
// leader: a new one begins to count from zero. Config.Metrics receives the same.
type RekeyProgress struct {
	Key       KeyID `json:"key"`
	Moved     int   `json:"moved"`     // records that were replaced
	Conflicts int   `json:"conflicts"` // records that somebody else had replaced
	// Left is how many records are still under the key, negative if Config.Data is no Counter.
	Left int `json:"left"`
	// Poisoned is how many records do not open, by the last scan, and PoisonedRefs the first of
	// them. They keep the key in rekeying: replace them, or remove the key by force. The scan is
	// repeated after 100 ms, and then after pauses that double to a minute.
	Poisoned     int      `json:"poisoned"`
	PoisonedRefs []string `json:"poisonedRefs"`
	Err          error    `json:"-"` // why the last attempt ended early, or nil; Problems has it too
}

const poisonedRefs = 16 // named in RekeyProgress

// progress is how far the data of each key has been moved, for Status and for metrics.
type progress struct {
	bell    *bell // rung when it has changed
	metrics Metrics

	mu   sync.Mutex // guards below
	keys map[KeyID]*RekeyProgress
}

// update changes the progress of a key.
func (g *progress) update(id KeyID, change func(*RekeyProgress)) {
	g.edit(id, change)
	g.bell.ring()
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
		g.bell.ring()
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

// status is the progress of the keys that are rekeying.
func (g *progress) status(rekeying []*meta.Key) (all []RekeyProgress) {
	g.mu.Lock()
	defer g.mu.Unlock()
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
