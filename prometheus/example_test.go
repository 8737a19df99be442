package prometheus_test

import (
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"

	"example.com/keyring"
	keyringprometheus "example.com/keyring/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Config.Metrics of keyring.Open and of node.Start take the result of New.
func ExampleNew() {
	registry := prometheus.NewRegistry() // or prometheus.DefaultRegisterer, and promhttp.Handler
	metrics, err := keyringprometheus.New(registry)
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))

	cfg := keyring.Config{
		Metrics: metrics,
		// and all the rest
	}
	cfg.Metrics.SetGauge("keyring.keys", 2, nil) // as the keyring does every 30 seconds

	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(line, "keyring_") {
			fmt.Print(line)
		}
	}
	// Output: keyring_keys 2
}
