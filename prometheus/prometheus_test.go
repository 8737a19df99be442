package prometheus_test

import (
	"strings"
	"sync"
	"testing"

	"example.com/keyring"
	keyringprometheus "example.com/keyring/prometheus"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func newMetrics(t *testing.T) (*keyringprometheus.Metrics, *prometheus.Registry) {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	m, err := keyringprometheus.New(reg)
	if err != nil {
		t.Fatal(err)
	}
	return m, reg
}

func TestEveryMetricIsExposed(t *testing.T) {
	m, reg := newMetrics(t)
	for _, info := range keyring.MetricInfos() {
		set, labels := m.SetGauge, map[string]string(nil)
		if info.Counter {
			set = m.AddCounter
		}
		if info.Label != "" {
			labels = map[string]string{info.Label: "some"}
		}
		set(info.Name, 2, labels)
		set(info.Name, 3, labels)
	}
	m.SetGauge("keyring.of.a.later.version", 1, nil)
	m.AddCounter("keyring.of.a.later.version", 1, nil)
	if n, err := testutil.GatherAndCount(reg); err != nil || n != len(keyring.MetricInfos()) {
		t.Errorf("%d metrics are exposed, %v, want %d", n, err, len(keyring.MetricInfos()))
	}
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("the linter of Prometheus says %v, %v", problems, err)
	}
	err = testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP keyring_key_seals_total Messages that this server encrypted under the key. An estimate: one in 256 is counted, as 256. Unit: messages.
# TYPE keyring_key_seals_total counter
keyring_key_seals_total{key="some"} 5
# HELP keyring_key_active_age_seconds Time since the active key was activated. Alarm above RotationPolicy.Every and a day. Unit: seconds.
# TYPE keyring_key_active_age_seconds gauge
keyring_key_active_age_seconds 3
`), "keyring_key_seals_total", "keyring_key_active_age_seconds")
	if err != nil {
		t.Error(err)
	}
}

// TestSeveralKeyringsNeedALabel: a second keyring's metrics are refused, and accepted with a label of its own.
func TestSeveralKeyringsNeedALabel(t *testing.T) {
	_, reg := newMetrics(t)
	if _, err := keyringprometheus.New(reg); err == nil || !strings.Contains(err.Error(), "keyring.key.active.age") {
		t.Errorf("registered twice: %v", err)
	}
	reg = prometheus.NewPedanticRegistry()
	for _, name := range []string{"a", "b"} {
		if _, err := keyringprometheus.New(prometheus.WrapRegistererWith(prometheus.Labels{"keyring": name}, reg)); err != nil {
			t.Errorf("with a label: %v", err)
		}
	}
}

// seen tells when a metric has been set, once.
type seen struct {
	keyring.Metrics
	name string
	once sync.Once
	set  chan struct{}
}

func (s *seen) SetGauge(name string, value float64, labels map[string]string) {
	s.Metrics.SetGauge(name, value, labels)
	if name == s.name {
		s.once.Do(func() { close(s.set) })
	}
}

func TestFiguresOfAServerAreExposed(t *testing.T) {
	m, reg := newMetrics(t)
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = "s1", hclog.NewNullLogger()
	store, fsm := raft.NewInmemStore(), keyring.NewFSM()
	addr, transport := raft.NewInmemTransport("s1")
	r, err := raft.NewRaft(conf, fsm, store, store, raft.NewInmemSnapshotStore(), transport)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Shutdown()
	alone := raft.Configuration{Servers: []raft.Server{{ID: "s1", Address: addr}}}
	if err := r.BootstrapCluster(alone).Error(); err != nil {
		t.Fatal(err)
	}
	s := &seen{Metrics: m, name: "keyring.problems", set: make(chan struct{})}
	k, err := keyring.Open(t.Context(), keyring.Config{
		Dir: t.TempDir(), ID: "s1", Raft: r, FSM: fsm, KEKs: []keyring.KEK{keyring.InlineKEK()}, Metrics: s,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	select {
	case <-s.set:
	case <-t.Context().Done():
		t.Fatal("no figure came")
	}
	if n, err := testutil.GatherAndCount(reg, "keyring_keys", "keyring_key_active_age_seconds", "keyring_problems"); err != nil || n < 3 {
		t.Errorf("%d metrics are exposed, %v", n, err)
	}
}
