package keyringtest

// Figures: what a keyring measures.

import (
	"maps"
	"sync"
)

// Figures is a Metrics that remembers. A series is "name" or "name;label=value".
type Figures struct {
	mu       sync.Mutex // guards below
	gauges   map[string]float64
	counters map[string]float64
}

// NewFigures returns an empty one.
func NewFigures() *Figures {
	return &Figures{gauges: map[string]float64{}, counters: map[string]float64{}}
}

func series(name string, labels map[string]string) string {
	for label, value := range labels {
		name += ";" + label + "=" + value
	}
	return name
}

// SetGauge implements keyring.Metrics.
func (f *Figures) SetGauge(name string, value float64, labels map[string]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gauges[series(name, labels)] = value
}

// AddCounter implements keyring.Metrics.
func (f *Figures) AddCounter(name string, growth float64, labels map[string]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counters[series(name, labels)] += growth
}

// Get returns what has come so far.
func (f *Figures) Get() (gauges, counters map[string]float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.gauges), maps.Clone(f.counters)
}
