package keyring

// What others observe: Config.Metrics and Config.Audit, and the goroutines that call them.

import (
	"context"
	"maps"
	"slices"
	"time"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// Metrics receives the metrics of a server: each metric of MetricInfos by its name, with the one label listed
// there, or none. Package gometrics implements it for go-metrics, and the module
// example.com/keyring/prometheus for Prometheus.
//
// The keyring calls it from several goroutines, and waits for each call, so a call must return at once. It
// must not change the map.
type Metrics interface {
	// SetGauge receives the present value of a gauge.
	SetGauge(name string, value float64, labels map[string]string)
	// AddCounter receives the growth of a counter.
	AddCounter(name string, growth float64, labels map[string]string)
}

// MetricInfo describes a metric.
type MetricInfo struct {
	Name    string // such as "keyring.keys"
	Counter bool   // a counter, which only grows; false means a gauge
	// Label is the name of its label: "key" for a key ID, "kind" for a ProblemKind, "severity", or
	// "certificate" for own or CA. Empty means no label.
	Label string
	Unit  string // seconds, keys, KEKs, messages, records, backups or problems
	Help  string // its meaning, in a sentence
}

// MetricInfos describes every metric that Config.Metrics receives.
func MetricInfos() []MetricInfo { return slices.Clone(metricInfos) }

var metricInfos = []MetricInfo{
	{Name: "keyring.key.active.age", Unit: "seconds", Help: "Time since the active key was activated. Alarm above RotationPolicy.Every and a day."},
	{Name: "keyring.keys", Unit: "keys", Help: "All keys of the keyring."},
	{Name: "keyring.keys.missing", Unit: "keys", Help: "Keys whose material this server lacks, without prepublished ones that no majority of the voters holds. Alarm if it stays above zero."},
	{Name: "keyring.keys.underheld", Unit: "keys", Help: "Keys that some server of the raft configuration has not reported to hold."},
	{Name: "keyring.keys.unbacked", Unit: "keys", Help: "Keys that no confirmed backup contains."},
	{Name: "keyring.backup.age", Unit: "seconds", Help: "Time since the last confirmed backup was made; without one, since the first key came into use. Alarm above BackupSchedule.Every and a quarter of it."},
	{Name: "keyring.backup.failures", Counter: true, Unit: "backups", Help: "Failed attempts of this leader to make a backup of Config.Backups."},
	{Name: "keyring.problems", Label: "kind", Unit: "problems", Help: "Entries of Status.Problems of each kind."},
	{Name: "keyring.problems.severity", Label: "severity", Unit: "problems", Help: "Entries of Status.Problems of each severity. Alarm if there are critical ones."},
	{Name: "keyring.jwks.keys", Unit: "keys", Help: "Keys whose tokens verify: those of the JWKS. More than 32 are a problem."},
	{Name: "keyring.keks.failing", Unit: "KEKs", Help: "Configured KEKs that do not work, including OldKEKs. Alarm if it stays above zero."},
	{Name: "keyring.certificate.left", Label: "certificate", Unit: "seconds", Help: "Time until this server's own certificate and its CA expire, if Config.Certificates reports them; negative after that."},
	{Name: "keyring.key.seals", Counter: true, Label: "key", Unit: "messages", Help: "Messages that this server encrypted under the key. An estimate: one in 256 is counted, as 256."},
	{Name: "keyring.key.opens", Counter: true, Label: "key", Unit: "messages", Help: "Messages that this server decrypted under the key. An estimate: one in 256 is counted, as 256."},
	{Name: "keyring.rekey.moved", Counter: true, Label: "key", Unit: "records", Help: "Records that this leader re-encrypted, which were under the key."},
	{Name: "keyring.rekey.conflicts", Counter: true, Label: "key", Unit: "records", Help: "Records under the key that this leader left alone because a writer had just replaced them."},
	{Name: "keyring.rekey.left", Label: "key", Unit: "records", Help: "Records that are still under the key, on the leader that re-encrypts them, if Config.Data is a Counter. Of the zero key: records in the clear."},
	{Name: "keyring.rekey.poisoned", Label: "key", Unit: "records", Help: "Records under the key that do not decrypt, by the last scan of this leader."},
}

// noMetrics stands for nil Metrics.
type noMetrics struct{}

func (noMetrics) SetGauge(string, float64, map[string]string)   {}
func (noMetrics) AddCounter(string, float64, map[string]string) {}

func keyLabel(id meta.KeyID) map[string]string { return map[string]string{"key": id.String()} }

// gauges gives the figures of this server to Config.Metrics.
type gauges struct {
	*local.Server
	to    Metrics
	every time.Duration
	look  func() (overview, Status)
}

// run gives the figures until ctx ends.
func (g *gauges) run(ctx context.Context) {
	told := map[meta.KeyID]keystore.Use{}
	ticks := time.NewTicker(g.every)
	defer ticks.Stop()
	for {
		g.setGauges()
		g.countUse(told)
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
	}
}

func (g *gauges) setGauges() {
	o, st := g.look()
	ring, age := o.Ring, 0.0
	if active := o.clocks.RingClock.Correct(ring).Active(); active != nil {
		age = o.now.Sub(active.Activated).Seconds()
	}
	missing, underheld := 0, 0
	for _, key := range plan.Needed(ring, local.VotersOf(st.Servers)) {
		if !g.Store.Holds(key) {
			missing++
		}
	}
	for _, key := range ring.Keys {
		if slices.ContainsFunc(st.Servers, func(s raft.Server) bool { return !key.HeldBy(string(s.ID)) }) {
			underheld++
		}
	}
	g.to.SetGauge("keyring.key.active.age", age, nil)
	g.to.SetGauge("keyring.keys", float64(len(ring.Keys)), nil)
	g.to.SetGauge("keyring.keys.missing", float64(missing), nil)
	g.to.SetGauge("keyring.keys.underheld", float64(underheld), nil)
	g.to.SetGauge("keyring.keys.unbacked", float64(len(st.NoBackup)), nil)
	g.to.SetGauge("keyring.backup.age", o.backupAge(st).Seconds(), nil)
	g.to.SetGauge("keyring.jwks.keys", float64(o.jwksKeys()), nil)
	g.to.SetGauge("keyring.keks.failing", float64(o.failingKEKs()), nil)
	g.setCertificates(o)
	g.setProblems(st)
}

// backupAge is the age of the last backup, or for how long there is none though a key is in use. Zero is
// neither.
func (o overview) backupAge(st Status) time.Duration {
	since := o.clocks.RingClock.BackupTime(o.Ring)
	if since.IsZero() {
		since = o.usedSince(st.NoBackup)
	}
	if since.IsZero() {
		return 0
	}
	return max(0, o.now.Sub(since))
}

// failingKEKs is how many KEKs of the configuration do not do their work.
func (o overview) failingKEKs() (n int) {
	for _, k := range o.keks {
		if k.Away != "" && k.State != KEKUnconfigured {
			n++
		}
	}
	return n
}

func (g *gauges) setProblems(st Status) {
	severities, problems := map[Severity]int{}, map[ProblemKind]int{}
	for _, p := range st.Problems {
		problems[p.Kind]++
		severities[p.Severity]++
	}
	for _, s := range []Severity{SeverityCritical, SeverityWarning, SeverityNotice} {
		g.to.SetGauge("keyring.problems.severity", float64(severities[s]), map[string]string{"severity": string(s)})
	}
	for _, p := range problemKinds { // also those of which there is none any more
		g.to.SetGauge("keyring.problems", float64(problems[p.kind]), map[string]string{"kind": string(p.kind)})
	}
}

// countUse counts what was sealed and opened since the last time, as seal.Key estimates it.
func (g *gauges) countUse(told map[meta.KeyID]keystore.Use) {
	uses := g.Store.Uses()
	for id, use := range uses {
		was := told[id]
		if was.Key != use.Key { // of a key that was fetched again, it counts from zero
			was = keystore.Use{}
		}
		for name, n := range map[string]uint64{"keyring.key.seals": use.Seals - was.Seals, "keyring.key.opens": use.Opens - was.Opens} {
			if n > 0 {
				g.to.AddCounter(name, float64(n), keyLabel(id))
			}
		}
		told[id] = use
	}
	maps.DeleteFunc(told, func(id meta.KeyID, _ keystore.Use) bool {
		_, used := uses[id]
		return !used
	})
}

// Event is one step in the life of a key, or a backup, for Config.Audit. Index, Step and Key together
// identify it: they are the same on every server, and when an Event is reported again after a restart.
type Event struct {
	Index uint64    // in raft's log, the same on every server
	Time  time.Time // when the leader proposed it
	Step  Step
	Key   KeyID  // zero for a backup
	Actor string // the name from WithActor; empty if the keyring acted by itself
}

func eventOf(e fsm.Event) Event {
	return Event{Index: e.Index, Time: e.Time, Step: Step(e.Step), Key: KeyID(e.Key), Actor: e.Actor}
}

// Step is the kind of an Event.
type Step string

// The steps.
const (
	StepAdded          Step = "added"           // the keyring knows the key; it is not active yet
	StepAdopted        Step = "adopted"         // the keyring knows a key of which only the file existed: see Adopt
	StepTokensAdmitted Step = "tokens admitted" // tokens of a key that was adopted for data alone verify now
	StepCompromised    Step = "compromised"     // all other keys are revoked and removed once the key is active
	StepActivated      Step = "activated"       // it encrypts and signs from now on
	StepRetired        Step = "retired"         // it is no longer active
	StepRevoked        Step = "revoked"         // its tokens no longer verify
	StepRekeying       Step = "rekeying"        // the re-encryption of its data begins
	StepRemoveAsked    Step = "remove asked"    // it will be removed once its data is re-encrypted
	StepDeprecated     Step = "deprecated"      // its data is re-encrypted
	StepRemoved        Step = "removed"         // its ID is never used again
	StepBackup         Step = "backup"          // a backup was confirmed
)

// WithActor names the operator or service that asks for the calls made with the context. The name goes into
// raft's log with the command, also from a follower, and from there to Config.Audit. It is not checked, and
// is cut after 255 bytes. A call that changes nothing in raft ignores it.
func WithActor(ctx context.Context, name string) context.Context {
	return fsm.WithActor(ctx, name)
}

// Actor returns the name that WithActor put into the context, or "".
func Actor(ctx context.Context) string { return fsm.Actor(ctx) }
