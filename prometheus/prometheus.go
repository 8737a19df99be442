// Package prometheus exposes the metrics of a keyring to Prometheus: it makes the Metrics of a keyring.Config
// or a node.Config.
//
//	metrics, err := keyringprometheus.New(prometheus.DefaultRegisterer)
//	if err != nil {
//		return err
//	}
//	cfg.Metrics = metrics
//
// [keyring.MetricInfos] lists the figures. docs/operations.md of the repository has an alert for each.
//
// # Names
//
// Names follow the rules of Prometheus: dots become underscores, a gauge in seconds ends in _seconds, and a
// counter in _total. So keyring.key.active.age is keyring_key_active_age_seconds, and keyring.key.seals is
// keyring_key_seals_total. The help text ends with the unit.
package prometheus

import (
	"fmt"
	"strings"

	"example.com/keyring"
	"github.com/prometheus/client_golang/prometheus"
)

// Metrics is the keyring.Metrics of one keyring.
type Metrics struct {
	gauges   map[string]*prometheus.GaugeVec // by the keyring's name
	counters map[string]*prometheus.CounterVec
}

// New registers every metric of a keyring with r. If one process has several keyrings, they need a label that
// distinguishes them: give each its own r from prometheus.WrapRegistererWith.
func New(r prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{gauges: map[string]*prometheus.GaugeVec{}, counters: map[string]*prometheus.CounterVec{}}
	for _, info := range keyring.MetricInfos() {
		if err := m.register(r, info); err != nil {
			return nil, fmt.Errorf("register %s: %w", info.Name, err)
		}
	}
	return m, nil
}

func (m *Metrics) register(r prometheus.Registerer, info keyring.MetricInfo) error {
	name := strings.ReplaceAll(info.Name, ".", "_")
	help := fmt.Sprintf("%s Unit: %s.", info.Help, info.Unit)
	var labels []string
	if info.Label != "" {
		labels = []string{info.Label}
	}
	if info.Counter {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name + "_total", Help: help}, labels)
		m.counters[info.Name] = c
		return r.Register(c)
	}
	if info.Unit == "seconds" {
		name += "_seconds"
	}
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	m.gauges[info.Name] = g
	return r.Register(g)
}

// SetGauge implements keyring.Metrics.
func (m *Metrics) SetGauge(name string, value float64, labels map[string]string) {
	if g := m.gauges[name]; g != nil {
		g.With(labels).Set(value)
	}
}

// AddCounter implements keyring.Metrics.
func (m *Metrics) AddCounter(name string, growth float64, labels map[string]string) {
	if c := m.counters[name]; c != nil {
		c.With(labels).Add(growth)
	}
}
