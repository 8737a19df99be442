package page_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
)

var shots = flag.String("page.shots", "", "a directory for screenshots")

// TestShots takes pictures of a rekey and of a server that is away, in light and dark, wide and
// narrow, and holds that nothing is cut off there.
func TestShots(t *testing.T) {
	t.Parallel()
	const moving = 520 // secrets: more than are moved at once
	flags := map[string][]string{}
	for id := range clicks {
		flags[id] = []string{"-clicks", "-rate", "50"}
	}
	s := start(t, flags)
	b := newBrowser(t)
	_, followers := s.roles()
	s.put(moving)
	b.open(s.urls[followers[0]])
	b.until(all+` && p.keys[0].secrets == "%d"`, moving)
	b.shoot("still")

	b.click("#rotate")
	b.until(all + ` && p.keys.length == 2`)
	b.click("#full")
	b.click("#yes")
	p := b.until(`p.keys.some(k => k.moving > 0 && k.moving < 1)`)
	if p.Keys[0].Moving != -1 {
		t.Errorf("the active key has a bar: %+v", p.Keys)
	}
	b.shoot("rekey")

	s.kill(followers[1])
	b.until(`p.servers.%s == "no answer"`, followers[1])
	b.shoot("away")

	s.kill(followers[0])
	b.until(`p.stale != ""`)
	b.shoot("stale")
	b.quiet(s.urls[followers[0]] + "/v1/cluster")
}

// shoot takes the pictures of one moment.
func (b *browser) shoot(name string) {
	b.t.Helper()
	for _, scheme := range []string{"light", "dark"} {
		b.devtools("Emulation.setEmulatedMedia", map[string]any{
			"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}},
		})
		b.picture(name + "-" + scheme)
	}
	b.devtools("Emulation.setDeviceMetricsOverride", map[string]any{"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": true})
	var right float64
	b.script(`return Math.max(...[...document.querySelectorAll("body *")].map(e => e.getBoundingClientRect().right))`, &right)
	if right <= 0 || right > 360 {
		b.t.Errorf("%s: in a window of 360 the page goes to %v", name, right)
	}
	b.picture(name + "-narrow")
	b.devtools("Emulation.clearDeviceMetricsOverride", struct{}{})
	b.devtools("Emulation.setEmulatedMedia", map[string]any{"features": []string{}})
}

func (b *browser) picture(name string) {
	b.t.Helper()
	if *shots == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(*shots, name+".png"), b.shot(), 0o644); err != nil {
		b.t.Fatal(err)
	}
}
