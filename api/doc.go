// Package api is what the processes of holdfast speak: the types and codes, and the client. It
// imports nothing that serves, so that who only asks, or shows, links no device.
//
// # The API
//
// HTTP with JSON on <run-dir>/control.sock, mode 0600: whoever may open it has
// the manager's rights. Version 1:
//
//	GET    /v1                     who answers: DaemonInfo
//	GET    /v1/devices             everything: Snapshot; ?users=false: but for who uses devices
//	POST   /v1/devices             create from a Spec (image paths absolute): Device
//	GET    /v1/devices/NAME        one device: Device; ?users=false as above
//	GET    /v1/devices/NAME/wait   Device, once it is in a state; ?state=S&state=S
//	DELETE /v1/devices/NAME        remove; ?force=true: also if it is in use
//	POST   /v1/devices/NAME/replace          a ReplaceRequest: Device
//	POST   /v1/devices/NAME/recover          a Force: Device
//	PUT    /v1/devices/NAME/standby          a Switch: Device
//	PUT    /v1/devices/NAME/leases/CONSUMER  attach: Device
//	DELETE /v1/devices/NAME/leases/CONSUMER  detach: Device
//	PUT    /v1/standby-check                 a Switch: KeyInfo
//	POST   /v1/upgrade                       an UpgradeRequest: UpgradeResult
//	GET    /v1/attr/PATH                     of the attribute tree: AttrInfo
//	PUT    /v1/attr/PATH                     an AttrValue
//	GET    /v1/events                        Events, one a line; ?follow=true, ?device=NAME
//	GET    /metrics                          for Prometheus
//
// NAME is a device's, or the kernel's name of its disk (ublkb0).
//
// An error has a status of 400 or more and a body {"error": text, "code": code};
// the codes are this package's Code constants. Fields are added, never renamed
// or given another meaning; a client ignores what it doesn't know, a server
// refuses a spec with unknown fields rather than serve something else than was
// asked for.
package api
