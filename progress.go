package keyring

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

// moves is the progress, for Status and for metrics.
type moves struct {
	bell    *bell // rung when it has changed
	metrics Metrics

	mu   sync.Mutex // guards below
	keys map[KeyID]*RekeyProgress
}

// of changes the progress of a key.
func (m *moves) of(id KeyID, change func(*RekeyProgress)) {
	m.edit(id, change)
	m.bell.ring()
}

func (m *moves) edit(id KeyID, change func(*RekeyProgress)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys == nil {
		m.keys = map[KeyID]*RekeyProgress{}
	}
	if m.keys[id] == nil {
		m.keys[id] = unbegun(id)
	}
	change(m.keys[id])
}

// unbegun is the progress of a key of which nothing is known.
func unbegun(id KeyID) *RekeyProgress { return &RekeyProgress{Key: id, Left: -1} }

// add counts a batch.
func (m *moves) add(id KeyID, moved, conflicts int) {
	m.of(id, func(p *RekeyProgress) { p.Moved, p.Conflicts = p.Moved+moved, p.Conflicts+conflicts })
	m.metrics.AddCounter("keyring.rekey.moved", float64(moved), keyLabel(id))
	m.metrics.AddCounter("keyring.rekey.conflicts", float64(conflicts), keyLabel(id))
}

// leave notes how many records are left under a key.
func (m *moves) leave(id KeyID, left int) {
	m.of(id, func(p *RekeyProgress) { p.Left = left })
	m.metrics.SetGauge("keyring.rekey.left", float64(left), keyLabel(id))
}

// get returns the progress of a key, and whether there is any.
func (m *moves) get(id KeyID) (p RekeyProgress, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys[id] != nil {
		return *m.keys[id], true
	}
	return p, false
}

// poison notes what a scan has found that does not open.
func (m *moves) poison(id KeyID, n int, refs []string) {
	m.of(id, func(p *RekeyProgress) { p.Poisoned, p.PoisonedRefs = n, refs })
	m.metrics.SetGauge("keyring.rekey.poisoned", float64(n), keyLabel(id))
}

// keep forgets all but these keys.
func (m *moves) keep(keys []*meta.Key) {
	dropped := m.drop(keys)
	for _, id := range dropped {
		m.metrics.SetGauge("keyring.rekey.left", 0, keyLabel(id)) // it is another leader's to say, or there is nothing
		m.metrics.SetGauge("keyring.rekey.poisoned", 0, keyLabel(id))
	}
	if len(dropped) > 0 {
		m.bell.ring()
	}
}

// drop forgets all but these keys, and returns which.
func (m *moves) drop(keys []*meta.Key) (dropped []KeyID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.keys {
		if !slices.ContainsFunc(keys, func(k *meta.Key) bool { return k.ID == id }) {
			delete(m.keys, id)
			dropped = append(dropped, id)
		}
	}
	return dropped
}

// status is the progress of the keys that are rekeying.
func (m *moves) status(rekeying []*meta.Key) (all []RekeyProgress) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range rekeying {
		p := m.keys[key.ID]
		if p == nil {
			p = unbegun(key.ID)
		}
		c := *p
		c.PoisonedRefs = slices.Clone(p.PoisonedRefs)
		all = append(all, c)
	}
	return all
}
