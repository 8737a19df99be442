package main

import (
	"bytes"
	"os"
	"regexp"
	"testing"
)

// The whole story with fewer secrets: both leaders are killed, and nothing of it is left.
func TestDemo(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	var out bytes.Buffer
	if err := run(t.Context(), 400, &out); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	for _, want := range []struct {
		line  string
		times int
	}{
		{`s\d was killed, with \d+ of 400 re-encrypted\n`, kills},
		{`s\d leads\n`, kills},
		{`all secrets are re-encrypted; [1-9]\d* secrets were put meanwhile`, 1},
		{`active +400 +\[s1 s2 s3\]\n`, 1},
		{`deprecated +0 `, 1},
		{`s\d decrypts 400 of 400 secrets\n`, 3},
	} {
		if n := len(regexp.MustCompile(want.line).FindAllString(out.String(), -1)); n != want.times {
			t.Errorf("%d lines %q, want %d", n, want.line, want.times)
		}
	}
	left, err := os.ReadDir(os.TempDir())
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if t.Failed() {
		t.Logf("%s", &out)
	}
}
