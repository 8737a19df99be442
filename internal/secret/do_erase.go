//go:build goexperiment.runtimesecret

package secret

import "runtime/secret"

// Do calls f, and has Go overwrite what f has used. The package's comment says what, when and where.
func Do(f func()) { secret.Do(f) }
