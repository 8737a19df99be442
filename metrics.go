package keyring

import (
	"slices"
	"time"

	"example.com/keyring/internal/plan"
	metrics "github.com/hashicorp/go-metrics/compat"
	"github.com/hashicorp/raft"
)

// measure gives the figures of this server to the process's sink of metrics, which raft uses too,
// until Close. Those of a rekey go there as it goes on: see RekeyProgress.
func (k *Keyring) measure() {
	told := map[KeyID][2]uint64{} // seals and opens
	ticks := time.NewTicker(k.cfg.MetricsEvery)
	defer ticks.Stop()
	for {
		k.setGauges()
		k.countUse(told)
		select {
		case <-ticks.C:
		case <-k.ctx.Done():
			return
		}
	}
}

func (k *Keyring) setGauges() {
	v, age := k.view(), 0.0
	ring, st := v.ring, k.statusOf(v)
	if active := k.sight(ring).Ring(ring).Active(); active != nil {
		age = k.now().Sub(active.Activated).Seconds()
	}
	missing, underheld := 0, 0
	for _, key := range plan.Needed(ring, votersOf(st.Servers)) {
		if !k.store.has(key) {
			missing++
		}
	}
	for _, key := range ring.Keys {
		if slices.ContainsFunc(st.Servers, func(s raft.Server) bool { return !key.HeldBy(string(s.ID)) }) {
			underheld++
		}
	}
	set := func(v float64, name ...string) { metrics.SetGauge(append([]string{"keyring"}, name...), float32(v)) }
	set(age, "key", "active", "age")
	set(float64(len(ring.Keys)), "keys")
	set(float64(missing), "keys", "missing")
	set(float64(underheld), "keys", "underheld")
	set(float64(len(st.NoBackup)), "keys", "unbacked")
	problems := map[ProblemKind]int{}
	for _, p := range st.Problems {
		problems[p.Kind]++
	}
	for _, p := range problemKinds { // also those of which there is none any more
		kind := []metrics.Label{{Name: "kind", Value: string(p.kind)}}
		metrics.SetGaugeWithLabels([]string{"keyring", "problems"}, float32(problems[p.kind]), kind)
	}
}

// countUse counts what was sealed and opened since the last time, as seal.Key estimates it.
func (k *Keyring) countUse(told map[KeyID][2]uint64) {
	all := k.store.all()
	for id, m := range all {
		key := m.sealer.Load()
		if key == nil {
			continue
		}
		seals, opens := key.Counts()
		was := told[id]
		if seals < was[0] || opens < was[1] { // the key came anew, and counts anew
			was = [2]uint64{}
		}
		for name, n := range map[string]uint64{"seals": seals - was[0], "opens": opens - was[1]} {
			if n > 0 {
				metrics.IncrCounterWithLabels([]string{"keyring", "key", name}, float32(n), labels(id))
			}
		}
		told[id] = [2]uint64{seals, opens}
	}
	for id := range told {
		if all[id] == nil {
			delete(told, id)
		}
	}
}

// count and gauge give a figure of a rekey to the sink.
func count(name string, key KeyID, n int) {
	metrics.IncrCounterWithLabels([]string{"keyring", "rekey", name}, float32(n), labels(key))
}

func gauge(name string, key KeyID, n int) {
	metrics.SetGaugeWithLabels([]string{"keyring", "rekey", name}, float32(n), labels(key))
}

func labels(key KeyID) []metrics.Label {
	return []metrics.Label{{Name: "key", Value: key.String()}}
}
