package page_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const (
	element    = "element-6066-11e4-a52e-4f735466cecf" // the field of an answer that names an element
	scriptTime = 20 * time.Second                      // for a condition of a page, longer than an election
	callTime   = scriptTime + 30*time.Second           // for one call of the driver
)

// browser is a session of WebDriver with a Chromium of its own. See https://www.w3.org/TR/webdriver2.
type browser struct {
	t    *testing.T
	base string // the URL of the session
}

// program finds a program that the tests can't do without.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v: the tests need Debian's packages chromium and chromium-driver, or the like", err)
	}
	return path
}

// newBrowser starts a driver and has it start a Chromium. Both end with the test.
func newBrowser(t *testing.T) *browser {
	t.Helper()
	chromium, driver := program(t, "chromium"), program(t, "chromedriver")
	profile := t.TempDir() // before the driver, so that it is removed after Chromium has ended
	cmd := exec.Command(driver, "--port=0")
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := &browser{t: t}
	t.Cleanup(func() {
		if b.base != "" {
			if err := b.call("DELETE", "", nil, nil); err != nil { // Chromium ends
				t.Error(err)
			}
		}
		cmd.Process.Kill()
		cmd.Wait() // the error is the signal
	})
	// It takes a port by itself and says which.
	var port string
	said := bufio.NewScanner(out)
	for port == "" && said.Scan() {
		_, port, _ = strings.Cut(strings.TrimSuffix(said.Text(), "."), "started successfully on port ")
	}
	if port == "" {
		t.Fatalf("chromedriver has not said its port: %v", said.Err())
	}
	go io.Copy(io.Discard, out) // until it ends

	b.base = "http://127.0.0.1:" + port + "/session"
	var session struct{ SessionID string }
	err = b.call("POST", "", map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{
		"browserName":       "chrome",
		"goog:loggingPrefs": map[string]string{"browser": "ALL"},
		"timeouts":          map[string]int64{"script": scriptTime.Milliseconds()},
		"goog:chromeOptions": map[string]any{"binary": chromium, "args": []string{
			"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
			"--disable-background-networking", "--disable-component-update", "--disable-sync",
			"--window-size=1100,700", "--user-data-dir=" + profile,
		}},
	}}}, &session)
	if err != nil {
		b.base = "" // there is none to end
		t.Fatal(err)
	}
	b.base += "/" + session.SessionID
	return b
}

// in returns the browser for a subtest.
func (b browser) in(t *testing.T) *browser {
	b.t = t
	return &b
}

// call sends a command to the driver, and decodes the value of its answer.
func (b *browser) call(method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		j, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(j)
	}
	req, err := http.NewRequest(method, b.base+path, body)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Timeout: callTime}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct{ Value json.RawMessage }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("%s %s: %s: %w", method, path, resp.Status, err)
	}
	if resp.StatusCode != http.StatusOK {
		var e struct{ Error, Message string }
		json.Unmarshal(answer.Value, &e) // the status says it too
		return fmt.Errorf("%s %s: %s: %s: %.300s", method, path, resp.Status, e.Error, e.Message)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer.Value, out)
}

// do is call for what has to work.
func (b *browser) do(method, path string, in, out any) {
	b.t.Helper()
	if err := b.call(method, path, in, out); err != nil {
		b.t.Fatal(err)
	}
}

// open navigates to a URL, and returns when it has loaded.
func (b *browser) open(url string) {
	b.t.Helper()
	b.do("POST", "/url", map[string]string{"url": url}, nil)
}

// find returns the path of the one element that a CSS selector finds first.
func (b *browser) find(css string) string {
	b.t.Helper()
	var e map[string]string
	b.do("POST", "/element", map[string]string{"using": "css selector", "value": css}, &e)
	return "/element/" + e[element]
}

// click clicks as a user does: it is an error where a user could not.
func (b *browser) click(css string) {
	b.t.Helper()
	b.do("POST", b.find(css)+"/click", struct{}{}, nil)
}

// enter has what follows look into a frame, until the next page.
func (b *browser) enter(css string) {
	b.t.Helper()
	_, id, _ := strings.Cut(b.find(css), "/element/")
	b.do("POST", "/frame", map[string]any{"id": map[string]string{element: id}}, nil)
}

// text returns what a user sees of an element.
func (b *browser) text(css string) (out string) {
	b.t.Helper()
	b.do("GET", b.find(css)+"/text", nil, &out)
	return out
}

// script runs the body of an async function in the page, and decodes what it returns.
func (b *browser) script(body string, out any) {
	b.t.Helper()
	// The driver waits for a promise.
	b.do("POST", "/execute/sync", map[string]any{"script": "return (async () => {" + body + "})()", "args": []any{}}, out)
}

// devtools sends a command of Chromium's own protocol.
func (b *browser) devtools(command string, params any) {
	b.t.Helper()
	b.do("POST", "/goog/cdp/execute", map[string]any{"cmd": command, "params": params}, nil)
}

// shot returns the page as a PNG.
func (b *browser) shot() []byte {
	b.t.Helper()
	var s string
	b.do("GET", "/screenshot", nil, &s)
	png, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		b.t.Fatal(err)
	}
	return png
}

// message is what the browser's console has.
type message struct{ Level, Source, Message string }

// console returns what has been written to the console since it was last asked.
func (b *browser) console() (out []message) {
	b.t.Helper()
	b.do("POST", "/se/log", map[string]string{"type": "browser"}, &out)
	return out
}

// quiet fails the test if the console has anything but failed requests that were meant to fail, by
// their URLs.
func (b *browser) quiet(failed ...string) {
	b.t.Helper()
next:
	for _, m := range b.console() {
		for _, url := range failed {
			if m.Source == "network" && strings.HasPrefix(m.Message, url+" ") {
				continue next
			}
		}
		b.t.Errorf("the console has: %s from %s: %s", m.Level, m.Source, m.Message)
	}
}
