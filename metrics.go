package keyring

// Metrics, and the goroutine that sets them.

import (
	"context"
	"maps"
	"slices"
	"time"

	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// Metrics receives the figures of a server: each metric that MetricInfos lists, by its name, and with the one
// label that it has there, or none. Package gometrics has one for go-metrics, and the module
// example.com/keyring/prometheus one for Prometheus.
//
// The keyring calls it from several goroutines, and waits for each call: a call must return at once. It
// must not change the map.
type Metrics interface {
	// SetGauge is told the present value of a gauge.
	SetGauge(name string, value float64, labels map[string]string)
	// AddCounter is told by how much a counter has grown.
	AddCounter(name string, growth float64, labels map[string]string)
}

// MetricInfo describes a metric.
type MetricInfo struct {
	Name    string // as in "keyring.keys"
	Counter bool   // it only grows, by AddCounter; false for a gauge
	Label   string // the name of its label: "key", for the ID of a key, or "kind", for a ProblemKind; empty if it has none
	Unit    string // in the plural: seconds, keys, messages, records or problems
	Help    string // what it tells, in a sentence
}

// MetricInfos returns a description of every metric that Config.Metrics receives.
func MetricInfos() []MetricInfo { return slices.Clone(metricInfos) }

var metricInfos = []MetricInfo{
	{Name: "keyring.key.active.age", Unit: "seconds", Help: "Time since the active key was activated. Alarm above RotationPolicy.Every and a day."},
	{Name: "keyring.keys", Unit: "keys", Help: "All keys of the keyring."},
	{Name: "keyring.keys.missing", Unit: "keys", Help: "Keys whose material this server lacks, without prepublished ones that no majority of the voters holds. Alarm if it stays above zero."},
	{Name: "keyring.keys.underheld", Unit: "keys", Help: "Keys that some server of the raft configuration has not reported to hold."},
	{Name: "keyring.keys.unbacked", Unit: "keys", Help: "Keys that no backup made by Backup contains."},
	{Name: "keyring.problems", Label: "kind", Unit: "problems", Help: "Entries of Status.Problems of each kind."},
	{Name: "keyring.key.seals", Counter: true, Label: "key", Unit: "messages", Help: "Messages that this server encrypted under the key. An estimate: one in 256 is counted, as 256."},
	{Name: "keyring.key.opens", Counter: true, Label: "key", Unit: "messages", Help: "Messages that this server decrypted under the key. An estimate: one in 256 is counted, as 256."},
	{Name: "keyring.rekey.moved", Counter: true, Label: "key", Unit: "records", Help: "Records that this leader re-encrypted, which were under the key."},
	{Name: "keyring.rekey.conflicts", Counter: true, Label: "key", Unit: "records", Help: "Records under the key that this leader left alone because a writer had just replaced them."},
	{Name: "keyring.rekey.left", Label: "key", Unit: "records", Help: "Records that are still under the key, on the leader that re-encrypts them, if Config.Data is a Counter."},
	{Name: "keyring.rekey.poisoned", Label: "key", Unit: "records", Help: "Records under the key that do not decrypt, by the last scan of this leader."},
}

// noMetrics is what Metrics nil means.
type noMetrics struct{}

func (noMetrics) SetGauge(string, float64, map[string]string)   {}
func (noMetrics) AddCounter(string, float64, map[string]string) {}

func keyLabel(id KeyID) map[string]string { return map[string]string{"key": id.String()} }

// measure gives the figures of this server to Config.Metrics until ctx ends.
func (k *Keyring) measure(ctx context.Context) {
	told := map[KeyID]keystore.Use{}
	ticks := time.NewTicker(k.cfg.MetricsEvery)
	defer ticks.Stop()
	for {
		k.setGauges()
		k.countUse(told)
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
	}
}

func (k *Keyring) setGauges() {
	v, age := k.caughtUp.view(), 0.0
	ring, st := v.ring, k.statusOf(v)
	if active := k.clocks.ringClock(ring).Correct(ring).Active(); active != nil {
		age = k.now().Sub(active.Activated).Seconds()
	}
	missing, underheld := 0, 0
	for _, key := range plan.Needed(ring, votersOf(st.Servers)) {
		if !k.store.Holds(key) {
			missing++
		}
	}
	for _, key := range ring.Keys {
		if slices.ContainsFunc(st.Servers, func(s raft.Server) bool { return !key.HeldBy(string(s.ID)) }) {
			underheld++
		}
	}
	to := k.cfg.Metrics
	to.SetGauge("keyring.key.active.age", age, nil)
	to.SetGauge("keyring.keys", float64(len(ring.Keys)), nil)
	to.SetGauge("keyring.keys.missing", float64(missing), nil)
	to.SetGauge("keyring.keys.underheld", float64(underheld), nil)
	to.SetGauge("keyring.keys.unbacked", float64(len(st.NoBackup)), nil)
	problems := map[ProblemKind]int{}
	for _, p := range st.Problems {
		problems[p.Kind]++
	}
	for _, p := range problemKinds { // also those of which there is none any more
		to.SetGauge("keyring.problems", float64(problems[p.kind]), map[string]string{"kind": string(p.kind)})
	}
}

// countUse counts what was sealed and opened since the last time, as seal.Key estimates it.
func (k *Keyring) countUse(told map[KeyID]keystore.Use) {
	uses := k.store.Uses()
	for id, use := range uses {
		was := told[id]
		if was.Key != use.Key { // of a key that was fetched again, it counts from zero
			was = keystore.Use{}
		}
		for name, n := range map[string]uint64{"keyring.key.seals": use.Seals - was.Seals, "keyring.key.opens": use.Opens - was.Opens} {
			if n > 0 {
				k.cfg.Metrics.AddCounter(name, float64(n), keyLabel(id))
			}
		}
		told[id] = use
	}
	maps.DeleteFunc(told, func(id KeyID, _ keystore.Use) bool {
		_, used := uses[id]
		return !used
	})
}
