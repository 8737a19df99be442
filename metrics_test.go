package keyring_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	metrics "github.com/hashicorp/go-metrics/compat"
)

// metricsSink has the process's metrics go to memory, in one interval of virtual time.
func metricsSink(t *testing.T) *metrics.InmemSink {
	t.Helper()
	s := metrics.NewInmemSink(1000*time.Hour, 2000*time.Hour)
	conf := metrics.DefaultConfig("")
	conf.EnableHostname, conf.EnableRuntimeMetrics, conf.EnableServiceLabel = false, false, false
	if _, err := metrics.NewGlobal(conf, s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { metrics.NewGlobal(conf, &metrics.BlackholeSink{}) })
	return s
}

// TestMetricsOfAServer, and that the README has each of them.
func TestMetricsOfAServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := metricsSink(t)
		const every = 30 * time.Second
		c := newCluster(t, keyringtest.Options{Servers: 1, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.MetricsEvery, cfg.Rotation.Every = every, -1
		}})
		k := ready(t, c).Keyring
		if _, err := k.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		const messages = 20_000
		for range messages {
			sealed, err := k.Encrypt(nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := k.Decrypt(sealed, nil); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Hour) // virtual
		gauges, counters := map[string]float64{}, map[string]float64{}
		for _, interval := range s.Data() {
			for name, g := range interval.Gauges {
				gauges[name] = float64(g.Value)
			}
			for name, c := range interval.Counters {
				counters[name] += c.AggregateSample.Sum
			}
		}
		for name, want := range map[string]float64{
			"keyring.keys": 2, "keyring.keys.missing": 0, "keyring.keys.underheld": 0, "keyring.keys.unbacked": 2,
			"keyring.problems;kind=inline_KEK": 1, "keyring.problems;kind=KEK_away": 0,
		} {
			if got, ok := gauges[name]; !ok || got != want {
				t.Errorf("%s is %v, %t, want %v", name, got, ok, want)
			}
		}
		if age := gauges["keyring.key.active.age"]; age < 3500 || age > 3700 {
			t.Errorf("the active key is %v seconds old", age)
		}
		for _, name := range []string{"seals", "opens"} {
			name = fmt.Sprintf("keyring.key.%s;key=%s", name, k.Keys()[0].ID)
			if n := counters[name]; n < messages/2 || n > messages*2 { // one in 256 stands for all
				t.Errorf("%s is %v, want about %d", name, n, messages)
			}
		}
		readme, err := os.ReadFile("README.md")
		if err != nil {
			t.Fatal(err)
		}
		for name := range gauges {
			name, _, _ = strings.Cut(name, ";")
			if strings.HasPrefix(name, "keyring.") && !strings.Contains(string(readme), "`"+name+"`") {
				t.Errorf("the README does not have %s", name)
			}
		}
		for _, name := range regexp.MustCompile("`keyring\\.[a-z.]+`").FindAllString(string(readme), -1) {
			name = strings.Trim(name, "`")
			known := strings.HasPrefix(name, "keyring.rekey.")
			for metric := range gauges {
				known = known || strings.HasPrefix(metric, name)
			}
			for metric := range counters {
				known = known || strings.HasPrefix(metric, name)
			}
			if !known {
				t.Errorf("the README has %s, which is none", name)
			}
		}
	})
}
