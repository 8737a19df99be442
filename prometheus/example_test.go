package prometheus_test

import (
	"log"
	"net/http"

	"example.com/keyring"
	keyringprometheus "example.com/keyring/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

func Example() {
	metrics, err := keyringprometheus.New(prometheus.DefaultRegisterer)
	if err != nil {
		log.Fatal(err)
	}
	cfg := keyring.Config{
		Metrics: metrics,
		// and all the rest
	}
	http.Handle("/metrics", promhttp.Handler())
	_ = cfg
}
